import pytest

from minicanvas.classifier import load_classifier


@pytest.fixture(scope="session")
def judge():
    return load_classifier("judge")
