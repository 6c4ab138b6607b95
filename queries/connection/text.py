"""SQL as text: the questions' files, names and texts quoted."""

from pathlib import Path

SQL = Path(__file__).parents[1] / "sql"


def sql_text(name: str) -> str:
    """Return the text of ``queries/sql/<name>.sql``."""
    return (SQL / f"{name}.sql").read_text(encoding="utf-8")


def quote_identifier(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Return a text as an SQL literal, for the places that take no parameter."""
    return "'" + text.replace("'", "''") + "'"
