"""A store, and a client that has opened its explorer."""

import contextlib
import json

import pytest
from starlette.testclient import TestClient

from featurestore import Store
from featurestore.cli import main
from featurestore.explorer.server import make_app
from tests.builders.explored import explored_store

PORT = 8765
TOKEN = "the-token"
HOOK = "unet.up_blocks.1.attentions.1"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return explored_store(tmp_path_factory.mktemp("explored") / "things")


@contextlib.contextmanager
def opened(store, **kwargs):
    """A client whose browser has opened the printed address."""
    app = make_app(store, token=TOKEN, port=PORT, **kwargs)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        assert client.get(f"/?token={TOKEN}").status_code == 200
        yield client


@pytest.fixture
def client(store):
    with opened(store) as found:
        yield found


def run(*words):
    """Run a command as a shell would; it must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


@pytest.fixture(scope="session")
def live_store(model_dir, tmp_path_factory):
    """A store of a random-weight pipeline, collected, trained and encoded by the command line."""
    root = tmp_path_factory.mktemp("live")
    prompts = root / "prompts.jsonl"
    rows = [{"prompt": f"picture {i}", "style": ["neon", "sketch"][i % 2]} for i in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = root / "store"
    model = ["--model", model_dir, "--steps", 3, "--guidance", 3, "--quiet"]
    run("collect", *model, "--prompts", prompts, "--hook", HOOK, "--store", path, "--images")
    trained = [
        "--store",
        path,
        "--hook",
        HOOK,
        "--name",
        "small",
        "--k",
        4,
        "--expansion",
        2,
        "--steps",
        20,
        "--batch-size",
        256,
    ]
    run("train", *trained, "--quiet")
    run("encode", "--store", path, "--sae", "small", "--quiet")
    return Store.open(path)
