"""Only `featurestore/format/durable` writes into a store: seen from outside, while the command line
works."""

import json
import sys
import types
from pathlib import Path

import pytest

from featurestore.errors import DamageError
from sae.training.logs import open_log
from tests.builders.cli import run
from tests.builders.saes import HOOK as TRAINED
from tests.builders.saes import make_store as make_training_store
from tests.builders.watch import Writes

HOOK = "unet.up_blocks.1.attentions.1"
OWNER = "featurestore.format.durable"
APART = "store/.work/logs/", "sae.training.logs"
"""the one exception, and who makes it: a training's log, written by TensorBoard's own writer"""


def snapshot(root):
    """Every file of a store, with what changes when it is written in whatever way."""
    paths = (
        (p for p in root.rglob("*") if p.is_file() and ".work" not in p.parts)
        if root.is_dir()
        else ()
    )
    return {
        p.relative_to(root).as_posix(): (s.st_ino, s.st_size, s.st_mtime_ns)
        for p in paths
        if (s := p.stat())
    }


@pytest.fixture
def prompts(tmp_path):
    def write(name, *styles):
        rows = ({"prompt": f"picture {i}", "style": style} for i, style in enumerate(styles))
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / name

    return write


def test_one_module_owns_every_write_into_a_store(capsys, tmp_path, model_dir, prompts):
    store, back, bundle = tmp_path / "store", tmp_path / "back", tmp_path / "b.tar.zst"
    at, sae = ("--store", store), ("--sae", "z")
    first, second = (
        prompts("p.jsonl", "neon", "sketch", "neon", "sketch"),
        prompts("q.jsonl", "neon", "neon", "neon", "sketch"),
    )
    made = ("--model", model_dir, "--hook", HOOK, "--steps", 2, "--guidance", 3, "--quiet")
    commands = [
        ("collect", *at, *made, "--prompts", first),
        ("train", *at, "--hook", HOOK, "--name", "z", "--k", 4, "--expansion", 2, "--steps", 6, "--batch-size", 64, "--quiet"),
        ("encode", *at, *sae, "--quiet"),
        ("score", store, *sae, "--by", "style"),
        ("export", store, *sae, "--by", "style"),
        ("relabel", store, "--prompts", second),
        ("pack", store, bundle),
        ("unpack", bundle, back),
        ("verify", store, "--deep"),
        ("repair", store),
    ]  # fmt: skip
    for command in commands:
        before = snapshot(store)
        with Writes(tmp_path) as writes:
            status, out, err = run(capsys, *command)
        assert status == 0, (command, out, err)
        inside = {
            (path, who)
            for path, who in writes.seen
            if path.startswith(("store/", "back/", ".back."))
        }
        strangers = {(path, who) for path, who in inside if not who.startswith(f"{OWNER}.")}
        assert not strangers, f"{command[0]} writes into a store from {sorted(strangers)[:5]}"
        # A library that writes below Python is seen by what it leaves: a file that no event of ours
        # placed.
        changed = {name for name, state in snapshot(store).items() if before.get(name) != state}
        unseen = changed - {path.removeprefix("store/") for path, _ in inside}
        assert not unseen, f"{command[0]} left {sorted(unseen)[:5]} without a write of {OWNER}"


class Events:
    """TensorBoard's writer, as far as a training uses it."""

    def __init__(self, directory):
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._file = Path(directory, "events.out.tfevents").open("a")  # noqa: SIM115

    def add_scalar(self, name, value, step):
        self._file.write(f"{name} {step} {value}\n")

    def close(self):
        self._file.close()


@pytest.fixture
def tensorboard(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", Events, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_a_training_log_is_the_one_exception(capsys, tmp_path, tensorboard):
    store = make_training_store(tmp_path / "store").root
    training = ("train", "--store", store, "--hook", TRAINED, "--name", "z", "--k", 2, "--expansion", 2,
                "--steps", 4, "--batch-size", 32, "--quiet", "--log", "tensorboard")  # fmt: skip
    with Writes(tmp_path) as writes:
        status, out, err = run(capsys, *training)
    assert status == 0, (out, err)
    strangers = {(path, who) for path, who in writes.seen if not who.startswith(f"{OWNER}.")}
    place, who = APART
    assert strangers and {one for _, one in strangers} == {who}
    assert all(f"{path}/".startswith(place) for path, _ in strangers), strangers
    assert (store / ".work/logs/events.out.tfevents").read_text().startswith("z/fvu ")


def test_a_training_log_follows_no_link_out_of_the_store(capsys, tmp_path, tensorboard):
    """A1: a stranger's store in which ``.work/logs`` is a link."""
    store = make_training_store(tmp_path / "store").root
    (tmp_path / "home").mkdir()
    (store / ".work").mkdir(exist_ok=True)
    (store / ".work" / "logs").symlink_to(tmp_path / "home")
    with (
        pytest.raises(DamageError, match=r"\.work/logs is a symbolic link"),
        open_log("tensorboard", store),
    ):
        pass
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "way", ["open", "os.open", "Path.open", "os.replace", "shutil", "rmtree", "symlink"]
)
def test_a_write_from_elsewhere_is_seen(tmp_path, way):
    """The watch itself: whatever Python offers to write with."""
    import os
    import shutil

    (tmp_path / "store").mkdir()
    (tmp_path / "store/there").write_text("x")
    (tmp_path / "mine").write_text("x")
    path = tmp_path / "store" / "x"
    ways = {
        "open": lambda: open(path, "w").close(),  # noqa: PTH123
        "os.open": lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)),
        "Path.open": lambda: path.open("xb").close(),
        "os.replace": lambda: os.replace(tmp_path / "mine", path),  # noqa: PTH105
        "shutil": lambda: shutil.copyfile(tmp_path / "mine", path),
        "rmtree": lambda: shutil.rmtree(tmp_path / "store"),
        "symlink": lambda: path.symlink_to(tmp_path / "mine"),
    }
    with Writes(tmp_path / "store") as writes:
        ways[way]()
    assert writes.seen and {who for _, who in writes.seen} == {""}
