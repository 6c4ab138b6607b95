import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from featurestore.cli import COMMANDS, cli
from featurestore.cli.options import Seeds
from featurestore.cli.reference import reference
from tests.builders.cli import run


def test_help_answers_at_once_and_loads_nothing_heavy():
    heavy = ("torch", "pyarrow", "duckdb", "diffusers", "datasets", "numpy")
    code = "import sys, featurestore.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
    assert result.stdout.rstrip().endswith("[]")
    assert min(times) < 0.5


def test_the_help_lists_every_command():
    text = reference()
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_every_command_has_an_example():
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert f"featurestore {name}" in (command.help or ""), name


def test_the_documented_command_line_is_the_real_one():
    page = Path(__file__).parents[3] / "docs/cli.md"
    assert page.read_text(encoding="utf-8") == reference(), "run 'make docs'"


def test_mistyped_commands_and_options_are_usage_errors_with_suggestions(capsys):
    status, _, err = run(capsys, "exprot")
    assert (status, "Did you mean 'export'" in err) == (2, True)
    status, _, err = run(capsys, "export", "store", "--percentil", "3")
    assert (status, "--percentile" in err) == (2, True)


def test_a_missing_store_is_one_line(capsys, tmp_path):
    for command in (["info"], ["verify"], ["sql", "select 1"], ["score", "--sae", "s", "--by", "style"]):
        status, out, err = run(capsys, command[0], tmp_path / "absent", *command[1:])
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("Error: no store at ")


def test_a_store_of_another_version_is_refused(capsys, tmp_path):
    from featurestore.format.canonical import sealed

    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest/store.json").write_bytes(sealed({"format": "featurestore", "format_version": 7, "run": {}}))
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
