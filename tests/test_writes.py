"""Only `featurestore/format/durable` writes into a store: seen from outside, while the command line
works."""

import json

import pytest

from tests.builders.cli import run
from tests.builders.watch import Writes

HOOK = "unet.up_blocks.1.attentions.1"
OWNER = "featurestore.format.durable"


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
