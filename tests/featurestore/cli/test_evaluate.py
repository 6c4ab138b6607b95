import json
import re

import pytest

from tests.builders.cli import run
from tests.builders.selections import HOOK, make_selection, timesteps_of

STYLES, OBJECTS = ("neon", "sketch"), ("cat", "tree")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"prompt": f"{o} {s}", "style": s, "object": o} for s in STYLES for o in OBJECTS]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"prompt": "cat", "object": "cat"}])
    )
    return path


@pytest.fixture(scope="module")
def store(model_dir, prompts, tmp_path_factory):
    """A store with an SAE, scored by style."""
    from featurestore.cli import main

    root = tmp_path_factory.mktemp("evaluate") / "store"
    commands = [
        ["collect", "--model", model_dir, "--prompts", prompts, "--hook", HOOK, "--store", root, "--steps", 2, "--guidance", 3],
        ["train", "--store", root, "--hook", HOOK, "--k", 4, "--expansion", 2, "--steps", 5, "--batch-size", 64,
         "--name", "small"],
        ["encode", "--store", root, "--sae", "small"],
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, command), "--quiet"])
        assert not stop.value.code
    return root


def common(model_dir, prompts):
    return [
        "--model",
        model_dir,
        "--prompts",
        prompts,
        "--judge",
        "minicanvas",
        "--steps",
        2,
        "--guidance",
        3,
        "--batch-size",
        5,
    ]


def exported(capsys, store, tmp_path):
    """Options that take out a selection of each style, which are exported."""
    files = []
    for concept in STYLES:
        files += ["--ablate", tmp_path / f"{concept}.json"]
        assert (
            run(
                capsys,
                "export",
                store,
                "--sae",
                "small",
                "--concept",
                f"style={concept}",
                "-o",
                files[-1],
            )[0]
            == 0
        )
    return files


def test_selections_are_evaluated_each_and_in_a_row_and_a_second_run_reads_the_first(
    capsys, model_dir, prompts, store, tmp_path
):
    files = exported(capsys, store, tmp_path)
    out = tmp_path / "out"
    command = ["evaluate", *common(model_dir, prompts), "--seeds", "5,6", *files, "--out", out]
    status, text, said = run(capsys, *command)
    assert status == 0, said
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["style=neon", "style=sketch", "average"]
    assert (
        "UA" in lines[0]
        and "CRA (released)" in lines[0]
        and "Fréchet (minicanvas:judge)" in lines[0]
    )
    body = json.loads((out / "evaluation.json").read_text())
    assert (body["protocol"], body["seeds"], body["judge"]) == ("each", [5, 6], "minicanvas:judge")
    first = body["removals"][0]
    assert first["targets"] == {"style": ["neon"]} and first["pictures"] == 10
    assert first["ua"]["low"] <= first["ua"]["value"] <= first["ua"]["high"]
    assert first["stored_bytes"] == 4 * (32 * (2 * 16 + 1) + 16)
    outcomes = {p.name: p.stat().st_mtime_ns for p in (out / "outcomes").iterdir()}
    assert len(outcomes) == 4  # untouched, its features, two removals
    again = run(capsys, *command)
    assert again[1] == text
    assert {p.name: p.stat().st_mtime_ns for p in (out / "outcomes").iterdir()} == outcomes
    status, text, _ = run(capsys, *command, "--protocol", "sequential")
    assert status == 0 and "UA of each target after every request:" in text
    assert (
        text.rstrip().splitlines()[-2].split()[0] == "1"
        and len(text.rstrip().splitlines()[-2].split()) == 2
    )


def test_settings_are_searched_in_a_store(capsys, model_dir, prompts, store, tmp_path):
    out = tmp_path / "out"
    command = [
        "evaluate",
        *common(model_dir, prompts),
        "--seeds",
        7,
        "--store",
        store,
        "--sae",
        "small",
        "--top",
        "1,3",
    ]
    command += ["--multiplier=-1,-30", "--concept", "style=neon", "--out", out]
    status, _, err = run(capsys, *command)
    assert (status, err.count("\n")) == (
        1,
        1,
    ) and "4 settings per concept: say what to choose them by" in err
    search = ["--search-judge", "minicanvas:selection", "--search-seeds", 3, "--search-others", 2]
    status, _, said = run(capsys, *command, *search)
    assert status == 0 and "search style=neon: setting 4 of 4, seeds 3: " in said
    body = json.loads((out / "evaluation.json").read_text())
    assert body["search_judge"] == "minicanvas:selection"
    edit = body["removals"][0]["setting"]["edits"][0]
    assert edit["strength"] in (-1, -30) and edit["intervention"] == "paper"
    kept = [json.loads(p.read_text()) for p in (out / "outcomes").glob("neon-*.json")]
    assert sorted(len(k["answers"]) for k in kept) == [4, 4, 4, 4, 5]


def test_what_holds_is_searched_over_mild_settings_with_an_attack(
    capsys, model_dir, prompts, store, tmp_path
):
    """The random model shows no concept, so that the attack, which follows the search, refuses. Each
    setting is tried towards what is kept, too."""
    command = ["evaluate", *common(model_dir, prompts), "--seeds", 7, "--store", store, "--hold"]
    command += ["--sae", "small", "--concept", "style=neon", "--out", tmp_path]
    status, _, err = run(capsys, *command)
    assert status == 1 and "--search-attack is part of a search" in err
    command += ["--search-judge", "minicanvas:selection", "--search-seeds", 3, "--search-others", 1]
    for given, n in (([], 36), (["--multiplier=-1", "--top", "4"], 6), (["--pull", "1"], 24)):
        status, _, said = run(capsys, *command, *given)
        assert f"search style=neon: setting {n} of {n}, seeds 3: " in said
        assert status == 1 and "nothing to bring back: minicanvas:selection sees style=neon" in said


def test_several_saes_of_a_store_are_one_removal_each_with_its_own_multiplier(
    capsys, model_dir, prompts, store, tmp_path
):
    out, search = tmp_path / "out", ["--search-judge", "minicanvas:selection", "--search-seeds", 3]
    train = ["train", "--store", store, "--hook", HOOK, "--k", 2, "--expansion", 2, "--steps", 2]
    for command in (
        [*train, "--batch-size", 64, "--name", "other", "--quiet"],
        ["encode", "--store", store, "--sae", "other", "--quiet"],
        [
            *["evaluate", *common(model_dir, prompts), "--seeds", 7, "--store", store],
            *["--sae", "small+other", "--multiplier=-1,-30", "--concept", "style=neon"],
            *["--search-others", 1, *search, "--out", out],
        ],
    ):
        status, _, said = run(capsys, *command)
        assert status == 0, said
    assert "setting 4 of 4" in said
    (removal,) = json.loads((out / "evaluation.json").read_text())["removals"]
    edits = removal["setting"]["edits"]
    assert [edit["sae"] for edit in edits] == ["small", "other"]
    assert {edit["strength"] for edit in edits} <= {-1, -30}


def test_concepts_removed_together_go_towards_what_is_kept(
    capsys, model_dir, prompts, store, tmp_path
):
    """Of a store the first concept that is kept; of files the one that is named."""
    files = exported(capsys, store, tmp_path)
    command = ["evaluate", *common(model_dir, prompts), "--seeds", 7, "--protocol", "joint"]
    of_store = ["--store", store, "--sae", "small", "--concept", "style=neon"]
    pulled, put_in = [*of_store, "--concept", "object=cat", "--pull", 0.5], []
    for more, toward in (
        ([*of_store, "--concept", "object=cat"], [None, None]),  # Nothing is searched or named.
        (pulled, ["sketch", "tree"]),
        ([*pulled, "--toward-top", 1], ["sketch", "tree"]),
        ([*of_store, "--concept", "object=cat", "--toward", "style=sketch"], ["sketch", "tree"]),
        ([*of_store, "--concept", "style=sketch", "--pull", 0.5], [None, None]),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        status, _, said = run(capsys, *command, *more, "--out", out)
        assert status == 0, said
        (removal,) = json.loads((out / "evaluation.json").read_text())["removals"]
        found = {
            e["concept"]: e.get("toward", {}).get("concept") for e in removal["setting"]["edits"]
        }
        assert sorted(found.values(), key=str) == sorted(toward, key=str)
        put_in.append({e.get("toward", {}).get("rows") for e in removal["setting"]["edits"]})
    _, by_default, fewer, by_name, _ = put_in
    assert by_default == by_name and not by_default & fewer
    each, out = [*command[:-1], "each", "--out", tmp_path / "each"], tmp_path / "each"
    for more, toward in (
        (
            [*of_store, "--concept", "style=sketch", "--pull", 0.5],
            {"neon": "sketch", "sketch": "neon"},
        ),
        ([*files, "--toward", files[3]], {"neon": "sketch", "sketch": None}),
    ):
        status, _, said = run(capsys, *each, *more)
        assert status == 0, said
        removals = json.loads((out / "evaluation.json").read_text())["removals"]
        edits = [edit for removal in removals for edit in removal["setting"]["edits"]]
        assert {e["concept"]: e.get("toward", {}).get("concept") for e in edits} == toward
    status, text, err = run(capsys, *each, *files, "--pull", 1)
    assert (status, text, err.count("\n")) == (1, "", 1)
    assert "--pull is how strongly to edit towards what is kept: give --toward FILE" in err
    generating = [
        "generate",
        "--model",
        model_dir,
        "--prompt",
        "a cat",
        "--steps",
        2,
        "--guidance",
        3,
    ]
    toward = [*files[:2], "--toward", files[3], "--pull", 2]
    status, _, said = run(capsys, *generating, *toward, "--out", tmp_path / "drawn")
    assert status == 0, said
    row = json.loads((tmp_path / "drawn/generated.jsonl").read_text().splitlines()[0])
    assert (row["ablated"][0]["toward"]["concept"], row["ablated"][0]["pull"]) == ("sketch", 2)
    status, _, err = run(capsys, *generating, *files[:2], "--pull", 2, "--out", tmp_path / "y")
    assert (
        status == 1 and "--pull is how strongly to edit towards what is kept: give --toward" in err
    )


def test_a_folder_of_pictures_is_scored(capsys, tmp_path):
    from minicanvas import prompt

    lines = [{"prompt": prompt(o, s), "style": s, "object": o} for s in STYLES for o in OBJECTS]
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps(line) + "\n" for line in [*lines, {"prompt": prompt("cat"), "object": "cat"}]
        )
    )
    pictures = tmp_path / "pictures"
    generate = [
        "generate",
        "--model",
        "minicanvas",
        "--prompts",
        path,
        "--out",
        pictures,
        "--quiet",
        "--batch-size",
        5,
    ]
    assert run(capsys, *generate)[0] == 0
    judge = [
        "judge",
        pictures,
        "--judge",
        "minicanvas",
        "--target",
        "style=neon",
        "--reference",
        pictures,
    ]
    status, text, err = run(capsys, *judge, "-o", tmp_path / "scores.json")
    assert status == 0, err
    body = json.loads((tmp_path / "scores.json").read_text())
    assert [body[key]["value"] for key in ("ua", "ira", "cra", "cra_plain")] == [0, 1, 1, 1]
    assert "0.0 [0.0, 65.8]" in text and "100.0 [34.2, 100.0]" in text  # Wilson's, of two pictures
    assert "s per picture" not in text and body["seconds_per_picture"] is None


def test_wrong_evaluations_are_one_line(capsys, model, model_dir, prompts, tmp_path):
    path = tmp_path / "violet.json"
    make_selection(model, [], timesteps_of(model), concept="violet").save(path)
    out = ["--out", tmp_path / "out"]
    cases = [
        ([*common(model_dir, prompts), *out], "give either --ablate FILE, or --store"),
        (
            [*common(model_dir, prompts), "--ablate", path, *out],
            "judge minicanvas:judge cannot answer style=violet: it knows neon",
        ),
        ([*common(model_dir, prompts), "--store", tmp_path, *out], "--store needs --sae"),
        (
            [*common(model_dir, prompts), "--ablate", path, "--top", 4, "--toward-top", 8, *out],
            "--top, --toward-top: for --store; an --ablate file says what it selects",
        ),
        (
            [
                *common(model_dir, prompts),
                "--ablate",
                path,
                "--search-judge",
                "minicanvas:selection",
                *out,
            ],
            "a search needs both --search-judge and --search-seeds",
        ),
        (
            [*common(model_dir, prompts), "--ablate", path, "--search-attack", 1, *out],
            "--search-attack is part of a search",
        ),
    ]
    for command, message in cases:
        status, text, err = run(capsys, "evaluate", *command)
        assert (status, text, err.count("\n")) == (1, "", 1) and message in err, err
    status, _, err = run(
        capsys, "judge", tmp_path, "--judge", "minicanvas", "--target", "style=neon"
    )
    assert status == 1 and "generated.jsonl cannot be read" in err
    assert not (tmp_path / "out").exists()


def test_generate_takes_a_setting_for_all_selections_or_one_each(
    capsys, model, model_dir, store, tmp_path
):
    from PIL import Image

    files = exported(capsys, store, tmp_path)
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")
    generate = [
        "generate",
        "--model",
        model_dir,
        "--prompt",
        "a",
        "--steps",
        2,
        "--guidance",
        3,
        "--quiet",
        *files,
    ]
    options = [
        "--intervention",
        "zero",
        "--intervention",
        "add",
        "--multiplier",
        -3,
        "--branch",
        "both",
        "--window",
        "0%:60%",
    ]
    status, _, err = run(
        capsys, *generate, *options, "--mask", tmp_path / "all.png", "--out", tmp_path / "out"
    )
    assert status == 0, err
    (line,) = (tmp_path / "out/generated.jsonl").read_text().splitlines()
    edits = json.loads(line)["ablated"]
    assert [(e["concept"], e["intervention"], e["strength"]) for e in edits] == [
        ("neon", "zero", -3),
        ("sketch", "add", -3),
    ]
    assert all(
        e["branches"] == ["cond", "uncond"]
        and e["window"] == {"first": 0, "last": 0.6, "parts": True}
        for e in edits
    )
    assert edits[0]["mask"] == edits[1]["mask"] is not None
    cases = [
        (
            ["--multiplier", 1, "--multiplier", 2, "--multiplier", 3],
            "--multiplier is given 3 times for 2 selections",
        ),
        (["--window", "9"], "window '9': expected timesteps such as 800:200"),
        (["--mask", tmp_path / "no.png"], "mask .*no.png cannot be read as a picture"),
    ]
    for wrong, message in cases:
        status, _, err = run(capsys, *generate, *wrong, "--out", tmp_path / "new")
        assert (status, err.count("\n")) == (1, 1)
        assert re.search(message, err)
    status, _, err = run(capsys, *generate[:-4], "--window", "0%:60%", "--out", tmp_path / "new")
    assert status == 1 and "--window is about selections: give --ablate too" in err
