import os
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


@pytest.mark.parametrize("text", ["", "x", "1,1", "3-1", "-1", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(click.BadParameter):
        Seeds().convert(text, None, None)
