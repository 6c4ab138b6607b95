"""Tensors out of torch pickles, which can run anything when they are loaded: so that none does.

1. The pickle inside the file is walked opcode by opcode, without executing any: only the opcodes
   that ``torch.save`` of tensors needs, and only the globals in ``_GLOBALS``, may occur.
2. A separate process loads it with ``weights_only=True`` (:mod:`sae.unpickle`), isolated from the
   environment, limited in time, and ended at once if it opens a socket, starts a process or writes
   a file.
3. Back come plain tensors, as safetensors through a pipe; this process never unpickles anything.
"""

import json
import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import SAEError

_PROGRAM = Path(__file__).with_name("unpickle.py")
_SECONDS = 600
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", f"{kind}Storage") for kind in _STORAGES),
}
_TENSOR_OPCODES = """
    PROTO GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET MARK STOP REDUCE BUILD BINPERSID EMPTY_DICT
    EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINUNICODE
    BININT BININT1 BININT2 LONG1 BINFLOAT NEWTRUE NEWFALSE NONE
"""
_OPCODES = frozenset(_TENSOR_OPCODES.split())


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file that ``torch.save`` wrote, without running what it says.

    Named by their keys, joined by ``/`` where dictionaries hold dictionaries. A number beside them
    is a tensor of one.

    Raises:
        SAEError: the file is no torch file of tensors and numbers, or asks for anything else.
    """
    check_pickle(path)
    data = _loaded(path)
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    others = json.loads(header["__metadata__"]["others"])
    numbers = {name: torch.tensor(value) for name, value in others.items() if _is_number(value)}
    wrong = sorted(name for name in others if name not in numbers)
    if wrong or "" in numbers:
        raise SAEError(
            f"{path} holds {', '.join(map(repr, wrong[:8] or ['']))}, expected only named tensors."
        )
    return tensors | numbers


def _is_number(value: object) -> bool:
    """Say whether a value is a number that a tensor can hold."""
    return type(value) is float or (type(value) is int and -(2**63) <= value < 2**63)


def _loaded(path: Path) -> bytes:
    """Return the safetensors that the separate process makes of a pickle."""
    command = [sys.executable, "-I", str(_PROGRAM), str(_SECONDS), str(path.resolve())]
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        result = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, env=environment, cwd=path.parent
        )
    except subprocess.TimeoutExpired as error:
        raise SAEError(f"{path}: reading took longer than {_SECONDS} s.") from error
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:200] if lines else "it tried what no tensor needs"
        raise SAEError(
            f"{path} cannot be read as plain tensors (exit {result.returncode}): {reason}"
        )
    return result.stdout


def check_pickle(path: Path) -> None:
    """Walk the pickle in a torch file without executing it.

    Raises:
        SAEError: the file is not what ``torch.save`` writes of plain tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries if entry.filename.endswith("data.pkl")]
            packed = [
                entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED
            ]
            if len(names) != 1 or packed:
                raise SAEError(
                    f"{path} is no torch file: it holds {len(names)} pickles and {len(packed)} "
                    f"packed entries."
                )
            data = archive.read(names[0])
    except OSError as error:
        raise SAEError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SAEError(
            f"{path} is no torch file (a zip archive, as torch writes since 1.6): {error}."
        ) from error
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise SAEError(
                    f"{path} is refused: its pickle uses {opcode.name}, which tensors do not need."
                )
            if opcode.name == "GLOBAL" and tuple(str(argument).split(" ", 1)) not in _GLOBALS:
                wanted = str(argument).replace(" ", ".")
                raise SAEError(
                    f"{path} is refused: its pickle calls {wanted}, which tensors do not need."
                )
    except ValueError as error:
        raise SAEError(f"{path} holds a malformed pickle: {error}.") from error
