import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Selection
from featurestore.errors import SelectionError
from tests.builders.selection_files import selection as make

SUFFIXES = [".json", ".csv", ".parquet", ".jsonl.zst", ".md"]
FLOATS = st.floats(-1e38, 1e38)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=15)
@given(
    concept=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    values=st.lists(st.tuples(st.integers(0, 15), FLOATS, FLOATS, FLOATS, FLOATS), max_size=5),
)
def test_every_format_loads_back_to_the_identical_selection(
    tmp_path_factory, suffix, concept, values
):
    directory = tmp_path_factory.mktemp("selection")
    values = {value[0]: value for value in values}.values()  # no feature twice
    rows = [(step % 2, [981.0, 961.0][step % 2], *value) for step, value in enumerate(values)]
    selection = make(directory / "store", concept, sorted(rows, key=lambda r: r[0]))
    selection.save(directory / f"file{suffix}")
    assert Selection.load(directory / f"file{suffix}") == selection


def test_a_file_and_its_store_can_move_together(tmp_path):
    (tmp_path / "here").mkdir()
    make(tmp_path / "here/store").save(tmp_path / "here/neon.json")
    assert json.loads((tmp_path / "here/neon.json").read_text())["store"] == "store"
    (tmp_path / "here").rename(tmp_path / "there")
    assert Selection.load(tmp_path / "there/neon.json").store == str(tmp_path / "there/store")


def test_other_programs_read_the_files(tmp_path):
    import duckdb
    import pandas
    import polars

    selection = make(tmp_path / "store", concept="with # and , and \" and '")
    for suffix in SUFFIXES:
        selection.save(tmp_path / f"neon{suffix}")
    assert pandas.read_csv(tmp_path / "neon.csv", comment="#")["mean_other"].tolist() == [1 / 3]
    assert polars.read_csv(tmp_path / "neon.csv", comment_prefix="#")["feature"].to_list() == [3]
    query = f"select feature, mean_other from read_csv('{tmp_path}/neon.csv', comment = '#')"
    assert duckdb.sql(query).fetchall() == [(3, 1 / 3)]
    assert duckdb.sql(f"select feature from '{tmp_path}/neon.parquet'").fetchall() == [(3,)]


def test_the_nearest_recorded_timestep_is_used():
    selection = make()
    assert selection.at(975).timestep == 981
    assert selection.at(975).distance == 6
    assert selection.at(971).timestep == 981
    assert selection.at(3).timestep == 961
    assert selection.at(981).features.tolist() == [3]
    assert len(selection.at(961).features) == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_one_clear_error(tmp_path, suffix):
    path = tmp_path / f"neon{suffix}"
    make(tmp_path / "store").save(path)
    for size in (0, 10, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(SelectionError, match="is no selection") as error:
            Selection.load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wherever_a_file_is_cut_it_is_refused_or_still_whole(tmp_path, suffix):
    path = tmp_path / f"neon{suffix}"
    selection = make(
        tmp_path / "store", rows=[(0, 981.0, f, 0.1 + f, 0.25, 1 / 3, 0.4) for f in range(6)]
    )
    selection.save(path)
    data = path.read_bytes()
    for size in {*range(len(data) * 2 // 3, len(data), 17), *range(len(data) - 40, len(data))}:
        path.write_bytes(data[:size])
        try:
            assert Selection.load(path) == selection
        except SelectionError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_timestep_that_the_scheduler_repeats_keeps_its_steps_apart(tmp_path, suffix):
    rows = [
        (0, 981.0, 1, *[0.1] * 4),
        (1, 961.0, 2, *[0.1] * 4),
        (2, 961.0, 2, *[0.2] * 4),
        (2, 961.0, 3, *[0.1] * 4),
    ]
    selection = make(tmp_path / "store", rows=rows, timesteps=(981.0, 961.0, 961.0))
    selection.save(tmp_path / f"neon{suffix}")
    loaded = Selection.load(tmp_path / f"neon{suffix}")
    assert loaded == selection
    assert loaded.at(961).features.tolist() == [2]
    assert loaded.at(961).mean_concept.tolist() == [0.1]
    assert loaded.features() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "# []\n{names}\n", "its header counts None rows, 0 are there"),
        ("a.csv", '# {{"n_rows": 1}}\n{names}\n1,2\n', "its header counts 1 rows, 1 are there"),
        ("a.csv", "# {{}}\nstep,x\n", "expected the columns step, .*, found step, x"),
        ("a.csv", "", "its header: it is not JSON"),
        ("a.md", "# x\n\n```json\n{{}}\n```\n\n| step |\n", "expected the columns .*, found step"),
        ("a.md", "", "its header: it is not JSON"),
    ],
)
def test_text_that_is_no_selection_is_told_in_words(tmp_path, name, text, message):
    names = "step,timestep,feature,score,mean_concept,mean_other,mean_all"
    (tmp_path / name).write_text(text.format(names=names))
    with pytest.raises(SelectionError, match=message):
        Selection.load(tmp_path / name)


def test_files_that_are_no_selection(tmp_path):
    with pytest.raises(SelectionError, match=r"one of \.json, \.csv, \.parquet, \.jsonl\.zst"):
        make().save(tmp_path / "neon.txt")
    with pytest.raises(SelectionError, match="cannot be read: No such file"):
        Selection.load(tmp_path / "absent.json")
    make(tmp_path / "store").save(tmp_path / "neon.json")
    body = json.loads((tmp_path / "neon.json").read_text())
    for change, message in [
        ({"format_version": 9}, "format version 9, this program reads version 1"),
        ({"format": "x"}, 'expected "format"'),
        ({"d_in": "8"}, "has the wrong type"),
        ({"n_latents": 2}, "a feature lies outside 0…1"),
        ({"k": "4"}, "has the wrong type"),
        ({"branch": "left"}, "branch is .left., expected one of cond, uncond"),
        ({"io": "gradient"}, "io is .gradient., expected one of output, input, difference"),
        ({"timesteps": []}, "has the wrong type"),
        ({"timesteps": [{"step": 1, "timestep": 981.0, "features": []}]}, "must be 0, 1, 2"),
        (
            {"timesteps": [{"step": 0, "timestep": float("nan"), "features": []}]},
            "NaN is not a number that JSON",
        ),
        (
            {"timesteps": [{"step": 0, "timestep": 981.0, "features": [{"feature": 10**30}]}]},
            "is no selection",
        ),
        ({"timesteps": 3}, "is no selection"),
    ]:
        (tmp_path / "bad.json").write_text(json.dumps(body | change))
        with pytest.raises(SelectionError, match=message):
            Selection.load(tmp_path / "bad.json")
    del body["hook"]
    (tmp_path / "bad.json").write_text(json.dumps(body))
    with pytest.raises(SelectionError, match="header lacks hook"):
        Selection.load(tmp_path / "bad.json")
