import json

import pytest
import safetensors.torch
import torch

from sae import pickles, unpickle


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def in_process(monkeypatch):
    """Read pickles in this process, which is faster: the separate one has its own tests below."""

    def load(path):
        pickles.check_pickle(path)
        found, others = {}, {}
        unpickle._walk("", torch.load(path, weights_only=True), found, others)
        return safetensors.torch.save(found, {"others": json.dumps(others)})

    monkeypatch.setattr(pickles, "_loaded", load)
