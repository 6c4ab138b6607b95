import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_picture_and_the_rooms_are_those_of_the_code():
    pages = runpy.run_path(str(ROOT / "docs" / "draw_house.py"))["pages"]
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date: run `make docs`"


def test_the_format_s_page_names_the_oldest_readers_of_float16():
    """D5."""
    page = " ".join((ROOT / "docs" / "format.md").read_text(encoding="utf-8").split())
    assert "float16, which DuckDB reads from 1.3 on, Polars from 1.20" in page
