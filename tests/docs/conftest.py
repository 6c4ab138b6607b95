import pytest

from tests.docs.pages import Shell, go_through

FIRST = "docs/tutorials/first-store.md"


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    return Shell(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def after_the_first(shell, tmp_path_factory):
    """The directory that the first tutorial leaves: the others begin in it."""
    directory = tmp_path_factory.mktemp("tutorial")
    go_through(FIRST, shell, directory)
    return directory
