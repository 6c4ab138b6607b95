import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from featurestore.cli import COMMANDS, cli
from featurestore.cli.options import Seeds
from featurestore.cli.reference import reference
from tests.builders.cli import run
from tests.builders.stores import make_store

LIBRARIES = {
    "PIL", "collectors", "datasets", "diffusers", "duckdb", "huggingface_hub", "jinja2", "matplotlib", "minicanvas", "numpy",
    "pandas", "polars", "pyarrow", "queries", "sae", "scipy", "starlette", "tabulate", "torch", "tqdm", "transformers",
}  # fmt: skip


def modules_of(*words):
    """The names of all modules that a command has loaded when it ends."""
    code = """if True:
        import sys
        from featurestore.cli import main
        try:
            main(sys.argv[1:])
        finally:
            print(*sys.modules, file=sys.stderr)"""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()


def test_commands_start_fast_because_they_load_little(tmp_path):
    """Modules are counted, not seconds: a start takes as long as its imports, on a busy machine
    too."""
    codes = np.random.default_rng(0).random((4, 2, 3, 5)).astype(np.float16)
    make_store(tmp_path / "store", codes, {"style": ["a", "b"] * 2})
    reading = {"numpy", "pyarrow", "tqdm", "tabulate"}
    for words, allowed, most in (
        (["--help"], set(), 220),
        (["info", tmp_path / "store"], reading, 420),
        (["query", tmp_path / "store", "concepts"], reading | {"duckdb", "queries"}, 520),
    ):
        loaded = modules_of(*words)
        assert {name.split(".")[0] for name in loaded} & LIBRARIES <= allowed, words
        assert len(loaded) < most, words


def test_the_help_lists_every_command():
    text = reference()
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_every_command_has_an_example():
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        inner = command.commands.values() if isinstance(command, click.Group) else []
        for one in [*inner, *([] if inner else [command])]:
            whole = name if one is command else f"{name} {one.name}"
            example = (one.help or "").rstrip().rpartition("\n\n")[2]  # the help ends in it
            assert "Example:\n" in example and f"featurestore {whole}" in example, whole


def test_every_example_is_one_that_the_command_line_takes():
    context = click.Context(cli, **cli.context_settings)
    examples = [
        shlex.split(line)
        for line in reference().replace("\\\n", " ").splitlines()
        if line.startswith("    ") and " featurestore " in f" {line.strip()} "
    ]
    assert len(examples) > 60
    for words in examples:
        command, rest = cli, words[words.index("featurestore") + 1 :]
        while isinstance(command, click.Group):
            command = command.get_command(context, rest.pop(0))
        with contextlib.suppress(click.exceptions.Exit):  # --help
            command.make_context("example", rest, parent=context)


def test_the_documented_command_line_is_the_real_one():
    page = Path(__file__).parents[3] / "docs/cli.md"
    assert page.read_text(encoding="utf-8") == reference(), "run 'make docs'"


def test_mistyped_commands_and_options_are_usage_errors_with_suggestions(capsys):
    status, _, err = run(capsys, "exprot")
    assert (status, "Did you mean 'export'" in err) == (2, True)
    status, _, err = run(capsys, "export", "store", "--percentil", "3")
    assert (status, "--percentile" in err) == (2, True)


def test_the_shell_can_complete_commands_and_options():
    def complete(words):
        asked = {
            "_FEATURESTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        command = [sys.executable, "-m", "featurestore"]
        return subprocess.run(
            command, env=os.environ | asked, capture_output=True, text=True, check=True
        ).stdout

    assert complete("featurestore pro") == "plain,prompts\n"
    assert complete("featurestore sql --time") == "plain,--timeout\n"


def test_a_missing_store_is_one_line(capsys, tmp_path):
    for command in (
        ["info"],
        ["verify"],
        ["sql", "select 1"],
        ["score", "--sae", "s", "--by", "style"],
    ):
        status, out, err = run(capsys, command[0], tmp_path / "absent", *command[1:])
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("Error: no store at ")


def test_a_store_of_another_version_is_refused(capsys, tmp_path):
    from featurestore.format.canonical import sealed

    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest/store.json").write_bytes(
        sealed({"format": "featurestore", "format_version": 7, "run": {}})
    )
    status, _, err = run(capsys, "info", tmp_path)
    assert (status, "format version 7, this program reads version 1" in err) == (1, True)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0,5,2", [0, 5, 2]), ("1-3", [1, 2, 3]), ("1-2,9", [1, 2, 9])]
)
def test_seeds(text, seeds):
    assert Seeds().convert(text, None, None) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no list of seeds: expected something like 0, 0,1,5 or 0-4."),
        ("x", "'x' is no list of seeds"),
        ("-1", "'-1' is no list of seeds"),
        ("1.5", "'1.5' is no list of seeds"),
        ("1,1", "'1,1': seeds must be distinct, and below 2^63."),
        ("3-1", "'3-1': expected the smaller seed first, and at most 1,000,000 seeds."),
        ("0-99999999999", "'0-99999999999': expected the smaller seed first, and at most"),
    ],
)
def test_seeds_that_are_none(text, message):
    with pytest.raises(click.BadParameter) as error:
        Seeds().convert(text, None, None)
    assert error.value.message.startswith(message)


def one_line(capsys, *words):
    """What a command that is refused says, on one line."""
    status, out, err = run(capsys, *words)
    assert (status, out, err.count("\n")) == (1, "", 1), (out, err)
    return err.removeprefix("Error: ").removesuffix("\n")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc", "a" * 5000, ""])
def test_a_name_that_no_sae_can_have_is_one_that_the_store_lacks(capsys, tmp_path, name):
    store = make_store(tmp_path / "s", np.ones((2, 1, 1, 2), np.float32), {"style": ["a", "b"]})
    for words in (("score", "--by", "style"), ("plot", "--kind", "fvu", "-o", "x.png")):
        said = one_line(capsys, words[0], store.root, "--sae", name, *words[1:])
        assert said == f"{store.root} has no SAE {name!r}. Known: s."
    assert store.records(f"stats/{name}") == [] and store.shard_names(f"codes/{name}") == set()
    assert store.any_record(name) is store.record(name, name) is store.done("samples", name) is None


def test_a_path_that_the_system_refuses_is_one_line(capsys, tmp_path):
    long = tmp_path / ("a" * 5000)
    for words in (("unpack", tmp_path, long), ("prompts", long)):
        said = one_line(capsys, *words)
        assert said == f"{long}: the system refuses it (File name too long)."


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_directory_is_no_file_to_write(capsys, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")
    status, _, err = run(capsys, "prompts", "p.txt", "-o", path)
    where = path or "."
    said = f"Error: cannot write {where}: Is a directory; nothing half-written is left.\n"
    assert (status, err) == (1, said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--ladder", "--features", 3),
            "--features, --ladder: part of --export, which is not given.",
        ),
        (
            ("--export", "page", "--port", 8000, "--no-browser"),
            "--export writes a folder and serves nothing: leave out --port, --no-browser.",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(capsys, tmp_path, words, message):
    assert one_line(capsys, "explore", tmp_path, *words) == message


def test_a_concept_without_a_family_is_named_with_its_option(capsys, tmp_path):
    said = one_line(capsys, "judge", tmp_path, "--judge", "minicanvas", "--target", "neon")
    assert said == "--target 'neon': expected FAMILY=CONCEPT, such as style=neon."


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_a_number_that_is_not_finite_is_a_usage_error(capsys, value):
    status, _, err = run(capsys, "plan", "--prompts", 1, "--gpu-price", value)
    assert status == 2 and f"Invalid value for '--gpu-price': '{value}' is not a finite" in err


def test_a_place_for_pictures_that_is_a_file_is_refused_before_anything_is_drawn(capsys, tmp_path):
    (tmp_path / "out").write_text("mine")
    asked = ("generate", "--model", "no such model", "--prompt", "a cat", "--out", tmp_path / "out")
    assert one_line(capsys, *asked) == f"--out {tmp_path / 'out'} is a file: name a directory."
