"""DuckDB's complaints in one line: what is wrong, what is near, and where in the statement."""

import difflib
import re

import duckdb

from featurestore.errors import nearest

_PICTURE = re.compile(r"\n\nLINE (\d+): (.*)\n( *)(\^+)")


def one_line(error: duckdb.Error) -> str:
    """Return DuckDB's message with its hint, without the picture of the statement that follows
    them."""
    return " ".join(str(error).partition("\n\n")[0].split())


def explain(connection: duckdb.DuckDBPyConnection, statement: str, error: duckdb.Error) -> str:
    """Return the message, the near columns where one is unknown, and the place in ``statement`` if
    DuckDB names one."""
    text = (
        _with_near_columns(connection, statement, error)
        if isinstance(error, duckdb.BinderException)
        else None
    )
    return f"{text or one_line(error)}{_place(statement, str(error))}"


def _place(statement: str, message: str) -> str:
    """Return `` (line 2, column 8: stile)``.

    DuckDB pictures the line and underlines the place. The line may have been cut to what is around
    it (``...``), and DuckDB may have dropped comments and empty lines above it, so it is looked up
    in the statement.
    """
    picture = _PICTURE.search(message)
    if picture is None:
        return ""
    label, shown = f"LINE {picture[1]}: ", picture[2]
    start = len(picture[3]) - len(label)
    place = shown[start : start + len(picture[4])]
    kept = shown.removesuffix("...")
    cut = 3 if kept.startswith("...") else 0
    for number, line in enumerate(statement.splitlines(), 1):
        column = line.find(kept[cut:])
        if column >= 0:
            return f" (line {number}, column {column + start - cut + 1}: {place})"
    return f" (at {place})"


def _with_near_columns(
    connection: duckdb.DuckDBPyConnection, statement: str, error: duckdb.Error
) -> str | None:
    """Return DuckDB's message with the columns that are near to the name it complains of, or
    None."""
    catalog = "select table_name, column_name from duckdb_columns() where not internal"
    tables, columns = map(set, zip(*connection.execute(catalog).fetchall(), strict=True))
    first = str(error).partition("\n")[0]
    for word in re.findall(r"\w+", statement):
        unknown = word not in tables | columns and f'"{word}"' in first
        close = difflib.get_close_matches(word, sorted(columns)) if unknown else []
        if close:
            return f"{first}{nearest(word, close)}"
    return None
