"""A store, and a client that has opened its explorer."""

import contextlib

import pytest
from starlette.testclient import TestClient

from featurestore.explorer.server import make_app
from tests.builders.explored import explored_store

PORT = 8765
TOKEN = "the-token"


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
