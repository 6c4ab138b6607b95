"""What a command says at a terminal when it is done: the command that usually comes next, which can
be run."""

import shlex
import sys
from types import SimpleNamespace
from unittest import mock

import click
import huggingface_hub
import pytest

from featurestore.cli import cli
from featurestore.cli.options import DrawingOptions
from featurestore.cli.terminal.hints import say_next
from tests.builders.cli import run
from tests.builders.selection_files import selection
from tests.torture import flips

ASKED = ("--model", "minicanvas", "--prompts", "p.jsonl")
JUDGED = (*ASKED, "--judge", "minicanvas")


def told(capsys, *args):
    """What a command says comes next, as words; it must be one that the command line takes."""
    with mock.patch.object(sys.stderr, "isatty", lambda: True):  # as pytest has it just now
        status, out, err = run(capsys, *args)
    assert status == 0, (out, err)
    line = err.splitlines()[-1]
    words = shlex.split(line.removeprefix("Next: featurestore "))
    assert line.startswith("Next: featurestore ")
    command, rest = cli, list(words)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(cli), rest.pop(0))
    command.make_context("next", rest, parent=click.Context(cli, **cli.context_settings))
    return words


def test_after_packing_and_pushing(capsys, tmp_path):
    store = flips.make(tmp_path / "store").root
    bundle = tmp_path / "b.tar.zst"
    assert told(capsys, "pack", store, bundle) == ["unpack", str(bundle), "STORE"]
    hub = mock.Mock(create_repo=lambda repo, **_: repo)
    with mock.patch.object(huggingface_hub, "HfApi", lambda: hub):
        assert told(capsys, "push", store, "me/it", "--revision", "v1") == [
            "pull", "me/it", "STORE", "--revision", "v1"
        ]  # fmt: skip


def test_after_drawing_importance(capsys, tmp_path):
    store = flips.make(tmp_path / "store").root
    plot = ("plot", store, "--sae", "s", "--concept", "style=a", "-o", tmp_path / "cat.png")
    assert told(capsys, *plot) == [
        "export", str(store), "--sae", "s", "--concept", "style=a", "-o", "SELECTION.json"
    ]  # fmt: skip


def test_after_reading_prompts(capsys, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    assert told(capsys, "prompts", tmp_path / "p.txt") == [
        "collect", "--model", "MODEL", "--hook", "HOOK", "--store", "STORE", "--prompts",
        str(tmp_path / "p.txt"),
    ]  # fmt: skip


def test_a_name_of_a_stranger_is_shown_and_not_obeyed(capsys):
    with mock.patch.object(sys.stderr, "isatty", lambda: True):
        say_next("generate", "--model", "\x1b]0;owned\x07 x")
    err = capsys.readouterr().err
    assert err == "Next: featurestore generate --model '\\x1b]0;owned\\x07 x'\n"


def test_after_exporting_an_sae(capsys, tmp_path):
    store = flips.make(tmp_path / "store").root
    export = ("sae", "export", store, "s", "--format", "sparsify", "--out", tmp_path / "o")
    assert told(capsys, *export) == [
        "sae", "import", str(tmp_path / "o"), "--store", "STORE", "--name", "s"
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """No model is loaded, and nothing is drawn."""
    monkeypatch.setattr(DrawingOptions, "asked", lambda self: [])
    monkeypatch.setattr(DrawingOptions, "load", lambda self, prompts=(): (mock.Mock(), mock.Mock()))
    monkeypatch.setattr(
        DrawingOptions, "judge", lambda self, names: SimpleNamespace(name="j", families={})
    )
    monkeypatch.setattr("sae.intervention.generate.generate_files", lambda *a, **k: [])


@pytest.fixture
def chosen(tmp_path):
    path = tmp_path / "it's cat.json"
    selection(tmp_path / "store").save(path)
    return path


def test_after_generating(capsys, tmp_path, drawn, chosen):
    out = tmp_path / "out"
    generate = ("generate", "--model", "minicanvas", "--prompt", "a cat", "--out", out)
    assert told(capsys, *generate) == [
        "generate", "--model", "minicanvas", "--prompt", "a cat", "--out", "OUT",
        "--ablate", "SELECTION.json",
    ]  # fmt: skip
    words = told(capsys, *generate, "--ablate", chosen)
    assert words[:4] == ["judge", str(out), "--judge", "JUDGE"]
    assert words[4] == "--target" and "=" in words[5]


def test_after_judging(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sae.evaluation.judge.load_judge", lambda *a: SimpleNamespace(name="j"))
    monkeypatch.setattr("sae.evaluation.score_folder", lambda *a, **k: None)
    monkeypatch.setattr("sae.evaluation.report.summary", lambda outcomes: {})
    monkeypatch.setattr("featurestore.cli.judge.scores_table", lambda rows, judge: "")
    assert told(capsys, "judge", tmp_path, "--judge", "minicanvas", "--target", "style=neon") == [
        "evaluate", "--model", "MODEL", "--prompts", "FILE", "--judge", "minicanvas",
        "--ablate", "SELECTION.json", "--out", "OUT",
    ]  # fmt: skip


def test_after_evaluating(capsys, tmp_path, monkeypatch, drawn, chosen):
    body = {"removals": [], "average": None}
    monkeypatch.setattr("sae.evaluation.evaluate", lambda *a, **k: body)
    monkeypatch.setattr("sae.evaluation.judge.check_labels", lambda *a: None)
    monkeypatch.setattr("featurestore.cli.evaluate.scores_table", lambda rows, judge: "")
    evaluate = ("evaluate", *JUDGED, "--ablate", chosen, "--out", tmp_path / "out")
    assert told(capsys, *evaluate) == [
        "attack", *JUDGED, "--ablate", str(chosen), "--out", "ATTACKS"
    ]  # fmt: skip


def test_after_attacking(capsys, tmp_path, monkeypatch, drawn, chosen):
    monkeypatch.setattr(
        "sae.evaluation.attack.attack", lambda *a, **k: SimpleNamespace(method="tokens")
    )
    monkeypatch.setattr("featurestore.cli.attack.attacks_table", lambda reports, judge: "")
    attack = ("attack", *JUDGED, "--ablate", chosen, "--out", tmp_path / "out")
    assert told(capsys, *attack) == [
        "harden", "STORE", *JUDGED, "--ablate", str(chosen), "--out", "HARDENED"
    ]  # fmt: skip
