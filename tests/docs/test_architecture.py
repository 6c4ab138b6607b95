import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_picture_and_the_rooms_are_those_of_the_code():
    pages = runpy.run_path(str(ROOT / "docs" / "draw_house.py"))["pages"]
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date: run `make docs`"
