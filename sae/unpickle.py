"""Run by :mod:`sae.pickles` as a program of its own: a torch pickle in, safetensors on
standard output.

``python -I unpickle.py CPU_SECONDS PICKLE``. Once torch is loaded, nothing can be opened for
writing, and no socket, process or foreign library: an audit hook ends the program, and audit hooks
cannot be taken off. Tensors are named by their keys, joined by ``/``; the metadata ``others`` is a
JSON object of the numbers, texts and None beside them.
"""

import json
import os
import resource
import sys

import safetensors.torch
import torch

_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.",
    "ctypes.",
    "shutil.",
    "urllib.",
    "ftplib.",
    "smtplib.",
    "http.",
    "webbrowser.",
)
_HARMLESS = {"os.listdir", "os.scandir"}
_SCALARS = (bool, int, float, str, type(None))


def _limit(cpu_seconds: int) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _watch() -> None:
    def audit(event: str, args: tuple) -> None:
        wrong = event.startswith(_FORBIDDEN) and event not in _HARMLESS
        if event == "open":
            mode, flags = args[1] or "", args[2] or 0
            wrong = any(letter in mode for letter in "wax+") or bool(
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
        if wrong:
            os._exit(77)

    sys.addaudithook(audit)


def _walk(prefix: str, value: object, tensors: dict, others: dict) -> None:
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage().nbytes() if value.layout == torch.strided else -1
        if value.is_quantized or value.numel() * value.element_size() > storage:
            raise ValueError(f"{prefix} is no plain tensor")
        tensors[prefix] = value.detach().contiguous().clone()
    elif isinstance(value, dict):
        for key, item in value.items():
            _walk(f"{prefix}/{key}" if prefix else str(key), item, tensors, others)
    elif isinstance(value, _SCALARS):
        others[prefix] = value
    else:
        raise ValueError(f"{prefix} is a {type(value).__name__}")


def _main(cpu_seconds: int, path: str) -> None:
    tensors: dict = {}
    others: dict = {}
    _limit(cpu_seconds)
    _watch()
    _walk("", torch.load(path, map_location="cpu", weights_only=True), tensors, others)
    sys.stdout.buffer.write(safetensors.torch.save(tensors, {"others": json.dumps(others)}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
