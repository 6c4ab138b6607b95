"""Torch pickles give tensors and run nothing."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from featurestore.errors import SAEError
from sae import pickles
from sae.formats.libraries.foreign import Choice, state_dict
from sae.formats.registry import read_checkpoint


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_file(path, pickled):
    """A torch file whose pickle is ``pickled``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def test_the_separate_process_hands_back_tensors_bit_for_bit(tmp_path):
    """Every dtype and layout that a checkpoint may have, a transposed view, a nested dictionary,
    numbers beside them."""
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.randn(5).half(),
        "c": torch.randn(2, 2, dtype=torch.bfloat16)[1],
        "d": torch.tensor(7, dtype=torch.int32),
        "e": torch.nn.Parameter(torch.randn(2)),
    }
    torch.save({"state": tensors}, tmp_path / "x.pt")
    taken = state_dict(tmp_path / "x.pt", within="state")
    for name in ("a", "b", "c", "e"):
        assert torch.equal(taken.take(name, tensors[name].shape), tensors[name].detach().float())
    assert taken.number("d") == 7
    taken.finish()


def test_a_malicious_file_runs_nothing(tmp_path):
    """The canary sings when it is unpickled in earnest, and in no way that this project reads
    files."""
    canary = tmp_path / "canary"
    evil = pickle.dumps({"W_enc": Canary(canary)}, protocol=2)
    pickle.loads(evil)
    assert canary.is_dir()
    canary.rmdir()
    path = torch_file(tmp_path / "sae.pt", evil)
    with pytest.raises(
        SAEError, match=r"is refused: its pickle calls posix.mkdir, which tensors do not need"
    ):
        read_checkpoint(path, choice=Choice(k=4))
    with pytest.raises(SAEError, match=r"cannot be read as plain tensors \(exit 1\)"):
        pickles._loaded(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_call_anything_are_refused_before_they_are_loaded(
    protocol, tmp_path, monkeypatch
):
    monkeypatch.setattr(pickles, "_loaded", lambda path: pytest.fail("it was loaded"))
    for evil in (Canary(tmp_path / "x"), subprocess.Popen, sys.exit, Path("x")):
        path = torch_file(tmp_path / "evil.pt", pickle.dumps([evil], protocol=protocol))
        with pytest.raises(SAEError, match=r"is refused: its pickle (calls|uses)"):
            state_dict(path)


@pytest.mark.parametrize(
    "attack",
    [
        "open('gone', 'w')",
        "import socket; socket.socket()",
        "import subprocess; subprocess.Popen(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import os; os.open('gone', os.O_WRONLY | os.O_CREAT)",
        "import os; os.mkdir('gone')",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_the_audit_hook_ends_whatever_gets_through(attack, tmp_path):
    """As if ``weights_only`` had a hole: the attack runs after the hook is set."""
    source = (Path(pickles.__file__).with_name("unpickle.py")).read_text()
    body = source.replace("import safetensors.torch\nimport torch\n", "").partition("if __name__")[
        0
    ]
    body = body.replace("torch.Tensor", "object")
    program = f"{body}\n_limit(5)\n_watch()\n{attack}\nprint('alive')\n"
    result = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert (result.returncode, result.stdout) == (77, ""), result.stderr
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_torch_files(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SAEError, match=r"is no torch file \(a zip archive"):
        state_dict(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
    with pytest.raises(
        SAEError, match=r"is no torch file: it holds 1 pickles and 1 packed entries"
    ):
        state_dict(path)
    torch_file(path, b"\x80\x02]")
    with pytest.raises(SAEError, match="holds a malformed pickle"):
        state_dict(path)
    path.unlink()
    with pytest.raises(SAEError, match="cannot be read: No such file"):
        state_dict(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A few bytes would become any number of them."""
    torch.save({"a": torch.zeros(1).expand(10**6)}, tmp_path / "x.pt")
    with pytest.raises(SAEError, match="a is no plain tensor"):
        state_dict(tmp_path / "x.pt")


def test_a_bare_tensor_is_no_state_dict(tmp_path, in_process):
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    with pytest.raises(SAEError, match="holds '', expected only named tensors"):
        state_dict(tmp_path / "x.pt")


def test_nothing_is_unpickled_here():
    """In the package, ``torch.load`` occurs in the separate program only, and ``pickle``
    nowhere."""
    root = Path(pickles.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "import pickle\n" not in text and "pickle.load" not in text, path
        assert (" torch.load(" in text) == (path.name == "unpickle.py"), path
