"""The whole way through the command line, on a random-weight pipeline."""

import errno
import json
import os

import duckdb
import pytest

from featurestore import Store
from featurestore.vocabulary import BY_FEATURE, CANDIDATES
from tests.builders.cli import run

HOOK = "unet.up_blocks.1.attentions.1"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"picture {i}", "style": ["neon", "sketch"][i % 2]}) + "\n"
            for i in range(4)
        )
    )
    return path


@pytest.fixture(scope="module")
def store(model_dir, prompts, tmp_path_factory):
    from featurestore.cli import main

    path = tmp_path_factory.mktemp("flow") / "store"
    collect = [
        "collect",
        "--model",
        model_dir,
        "--prompts",
        prompts,
        "--hook",
        HOOK,
        "--store",
        path,
        "--steps",
        3,
        "--guidance",
        3,
    ]
    for command in (
        [*collect, "--quiet"],
        [
            "train",
            "--store",
            path,
            "--hook",
            HOOK,
            "--k",
            4,
            "--expansion",
            2,
            "--name",
            "small",
            "--steps",
            20,
            "--batch-size",
            256,
            "--quiet",
        ],
        ["encode", "--store", path, "--sae", "small", "--quiet"],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in command])
        assert not stop.value.code
    return path


def test_info_and_verify(capsys, store):
    status, out, _ = run(capsys, "info", store)
    assert status == 0
    for text in ("n_steps", f"activations/{HOOK}", "codes/small", "small"):
        assert text in out
    status, out, _ = run(capsys, "verify", store, "--deep")
    assert (status, "0 damaged, 0 leftover" in out) == (0, True)


def test_score_shows_the_best_features_of_every_concept(capsys, store):
    status, out, _ = run(capsys, "score", store, "--sae", "small", "--by", "style", "--top", "2")
    assert status == 0
    assert out.count("neon") == out.count("sketch") == 2
    assert "scores kept" in out


def test_sql_in_every_format(capsys, store, tmp_path):
    statement = (
        "select style, count(*) as n, avg(guidance) as g from samples group by style order by style"
    )
    assert run(capsys, "sql", store, statement)[1].splitlines() == [
        "style   n  g",
        "──────  ─  ─",
        "neon    2  3",
        "sketch  2  3",
    ]
    assert (
        run(capsys, "sql", store, statement, "--format", "csv")[1].splitlines()[0]
        == '"style","n","g"'
    )
    rows = [{"style": "neon", "n": 2, "g": 3.0}, {"style": "sketch", "n": 2, "g": 3.0}]
    assert json.loads(run(capsys, "sql", store, statement, "--format", "json")[1]) == rows
    assert (
        run(
            capsys, "sql", store, statement, "--format", "parquet", "-o", tmp_path / "rows.parquet"
        )[0]
        == 0
    )
    assert duckdb.sql(f"select style, n from '{tmp_path}/rows.parquet'").fetchall() == [
        ("neon", 2),
        ("sketch", 2),
    ]
    status, out, err = run(capsys, "sql", store, "select stile from samples")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "Did you mean 'style'" in err
    assert (
        run(capsys, "sql", store, "select count(*) as n from codes", "--format", "json")[1]
        .strip()
        .startswith("[")
    )


def test_export_and_generate_with_and_without(capsys, store, model_dir, tmp_path):
    files = [tmp_path / f"neon{suffix}" for suffix in (".json", ".csv", ".parquet", ".jsonl.zst")]
    for path in files:
        status, out, _ = run(
            capsys,
            "export",
            store,
            "--sae",
            "small",
            "--concept",
            "style=neon",
            "--top",
            3,
            "-o",
            path,
        )
        assert (status, "over 3 timesteps" in out) == (0, True)
    generate = [
        "generate",
        "--model",
        model_dir,
        "--prompt",
        "a b",
        "--seeds",
        "0,1",
        "--steps",
        3,
        "--guidance",
        3,
        "--quiet",
    ]
    assert run(capsys, *generate, "--out", tmp_path / "before")[0] == 0
    for path in files:
        assert (
            run(
                capsys,
                *generate,
                "--ablate",
                path,
                "--multiplier",
                "-30",
                "--out",
                tmp_path / path.name[4:],
            )[0]
            == 0
        )
    pictures = {
        d: sorted(p.read_bytes() for p in (tmp_path / d).glob("*.png"))
        for d in ("before", ".json", ".csv", ".parquet", ".jsonl.zst")
    }
    assert len(pictures["before"]) == 2
    assert pictures[".json"] != pictures["before"]
    assert pictures[".json"] == pictures[".csv"] == pictures[".parquet"] == pictures[".jsonl.zst"]
    lines = [
        json.loads(line) for line in (tmp_path / ".json/generated.jsonl").read_text().splitlines()
    ]
    assert [line["seed"] for line in lines] == [0, 1]
    assert lines[0]["ablated"][0]["concept"] == "neon"
    assert all((tmp_path / ".json" / line["file"]).is_file() for line in lines)


def test_export_into_the_store(capsys, store):
    status, out, _ = run(capsys, "export", store, "--sae", "small", "--concept", "style=sketch")
    assert (status, "selections/small/" in out) == (0, True)
    assert (
        run(capsys, "sql", store, "select distinct concept from selections")[1].splitlines()[-1]
        == "sketch"
    )


def test_what_does_not_exist_is_one_line_with_a_suggestion(
    capsys, store, model_dir, prompts, tmp_path
):
    collect = ["collect", "--model", model_dir, "--steps", 3, "--guidance", 3, "--quiet"]
    absent, new = tmp_path / "absent", tmp_path / "new.json"
    cases = [
        (
            ["export", store, "--sae", "small", "--concept", "style=noen", "-o", new],
            "Did you mean 'neon'?",
        ),
        (
            ["export", store, "--sae", "smal", "--concept", "style=neon", "-o", new],
            "Did you mean 'small'?",
        ),
        (
            ["export", store, "--sae", "small", "--concept", "neon", "-o", new],
            "expected FAMILY=CONCEPT",
        ),
        (
            [
                "export",
                store,
                "--sae",
                "small",
                "--concept",
                "style=neon",
                "-o",
                tmp_path / "x.txt",
            ],
            "the suffix says which",
        ),
        (["score", store, "--sae", "small", "--by", "stlye"], "Did you mean 'style'?"),
        (
            ["train", "--store", store, "--hook", "unet.up_blocks.1.attentions.0", "--name", "x"],
            f"Did you mean '{HOOK}'",
        ),
        (["encode", "--store", store, "--sae", "smal"], "Did you mean 'small'?"),
        (
            [*collect, "--prompts", absent, "--hook", HOOK, "--store", tmp_path / "new"],
            "cannot be read: No such file",
        ),
        (
            [*collect, "--prompts", prompts, "--hook", "unet.mid", "--store", tmp_path / "new"],
            "the model has no module 'unet.mid'",
        ),
        (
            [
                *collect,
                "--prompts",
                prompts,
                "--hook",
                "unet.time_embedding",
                "--store",
                tmp_path / "new",
            ],
            "only a map",
        ),
        (["generate", "--model", model_dir, "--out", absent], "give --prompt or --prompts"),
        (
            [
                "generate",
                "--model",
                model_dir,
                "--prompt",
                "a",
                "--ablate",
                absent.with_suffix(".json"),
                "--out",
                absent,
            ],
            "cannot be read",
        ),
        (
            ["generate", "--model", "minicanvs", "--prompt", "a", "--out", absent],
            "Did you mean 'minicanvas'",
        ),
    ]
    for command, message in cases:
        status, out, err = run(capsys, *command)
        assert (status, out, err.count("\n")) == (1, "", 1), (command, out, err)
        assert err.startswith("Error: ")
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_loses_nothing(
    capsys, model_dir, prompts, tmp_path, monkeypatch
):
    collect = [
        "collect",
        "--model",
        model_dir,
        "--prompts",
        prompts,
        "--hook",
        HOOK,
        "--store",
        tmp_path / "store",
    ]
    collect += ["--steps", 3, "--guidance", 3, "--quiet", "--shard-samples", 2]
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run(capsys, *collect)
    assert (status, err.count("\n")) == (1, 1)
    assert (
        "No space left on device; nothing half-written is left. It needs" in err
        and "free some and run the same command" in err
    )
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(capsys, *collect)[0] == 0
    assert run(capsys, "verify", tmp_path / "store", "--deep")[0] == 0


def test_a_dry_run_and_codes_without_activations(capsys, model_dir, prompts, store, tmp_path):
    collect = [
        "collect",
        "--model",
        model_dir,
        "--prompts",
        prompts,
        "--store",
        tmp_path / "new",
        "--steps",
        3,
    ]
    collect += ["--guidance", 3, "--quiet", "--sae", store / "saes" / "small", "--no-activations"]
    status, out, _ = run(capsys, *collect, "--dry-run")
    assert status == 0 and "4 samples, 1 shards" in out and "Nothing was written." in out
    assert out.count("codes/small") == out.count("stats/small") == 1 and "activations" not in out
    assert list(tmp_path.iterdir()) == []
    status, out, _ = run(capsys, *collect)
    assert (
        status == 0
        and "4 samples collected." in out
        and "codes/small: 12 rows" in out
        and "the writer busy" in out
    )
    # What is derived is there, as after `encode`.
    made = {table for table in Store.open(tmp_path / "new").tables() if table.endswith("/small")}
    derived = ("sums", "totals", *BY_FEATURE, *CANDIDATES)
    assert made == {f"{kind}/small" for kind in ("codes", "stats", *derived)}
    assert run(capsys, "score", tmp_path / "new", "--sae", "small", "--by", "style")[0] == 0
    status, out, err = run(capsys, *collect, "--timesteps", "every:2")
    assert (status, err.count("\n")) == (
        1,
        1,
    ) and "was collected with --timesteps all, now it is every:2" in err
