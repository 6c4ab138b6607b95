"""The tables of docs/scale.md are those of the last recorded run of benchmarks/scale.py."""

import pytest

from benchmarks.scaling import page


def test_the_page_has_the_figures_of_the_last_run():
    text = page.PAGE.read_text(encoding="utf-8")
    assert f"{page.BEGIN}\n\n{page.tables(page.last())}\n\n{page.END}" in text


def test_a_run_is_told_by_task_and_scale():
    took = {"cpu": 1.234, "files": 1042, "mb": 319.5, "files_hashed_mb": 0.04}
    figures = {
        "note": "quiet",
        "shards 10 x, now: sql: one style": took,
        "shards 1 x, now: sql: one style": {**took, "files": None},
        "shards 1 x, 0.1: sql: one style": {"failed": "more than 240 s"},
        "shards 1 x, now: sql: count(*)": took,
        "rows 0.3 x, now: query: drift": took,
        "rows 0.3 x, now: Spark local[2]: per step": took,
        "grows with shards, now: sql: one style": {"cpu": 0.451, "mb": None},
    }
    shards, rows, peers = page.tables(figures).split("\n\n")
    assert shards.splitlines() == [
        "| | 0.1, 1 × | now, 1 × | now, 10 × | s grow with shards to the power: 0.1, now | "
        "MB of files hashed |",
        "|---|---:|---:|---:|---:|---:|",
        "| `sql`: one style | more than 240 s | 1.23, many, 320 | 1.23, 1,042, 320 | –, 0.45 | 0.0 |",
        "| `sql`: `count(*)` | – | 1.23, 1,042, 320 | – | –, – | 0.0 |",
    ]
    assert rows.splitlines()[2:] == ["| `query`: `drift` | 1.23, 1,042, 320 | –, – | 0.0 |"]
    assert peers.splitlines()[2:] == [
        "| Spark local[2]: per step | 0.3 × the rows | 1.23, 1,042, 320 |"
    ]


@pytest.mark.parametrize("text", ["", "no marks\n"])
def test_a_page_without_marks_is_not_written(text, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "scale.md")
    page.PAGE.write_text(text)
    with pytest.raises(ValueError, match="marks"):
        page.write_page()
    assert page.PAGE.read_text() == text
