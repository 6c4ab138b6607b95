"""What all tests share. What needs torch is loaded where it is used: the process that hands the tests
out to others runs none itself."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30


def has_room(path):
    """Whether a directory takes the files of all tests, also the programs among them."""
    if not path.is_dir():
        return False
    there = os.statvfs(path)
    return there.f_bavail * there.f_frsize > ROOM and not there.f_flag & os.ST_NOEXEC


if has_room(MEMORY):
    # Tests make and remove some 20,000 directories, for which some disks take a minute and more.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# How long an example takes says something of the machine, not of the code. The same examples at every
# run, so that a change is refused for what it does; HYPOTHESIS_PROFILE=explore draws new ones.
for name in ("tests", "explore"):
    settings.register_profile(
        name,
        derandomize=name == "tests",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


def pytest_configure(config):
    """Prepare a process that runs tests."""
    if getattr(config.option, "numprocesses", None):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """No test reads or writes the user's own cache of what was verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache") / "featurestore"))
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A saved random-weight Stable Diffusion pipeline."""
    from tests.builders.pipelines import save, tiny_stable_diffusion

    directory = tmp_path_factory.mktemp("model")
    return save(tiny_stable_diffusion(directory), directory / "tiny")


@pytest.fixture(scope="session")
def model(model_dir):
    from sae.diffusion.pipelines import load_model

    return load_model(str(model_dir), "cpu")


class Architectures:
    """The models of :mod:`tests.builders.architectures`, each made, saved and loaded once."""

    def __init__(self, root):
        self._root, self._models = root, {}

    def directory(self, name):
        """The saved pipeline."""
        path = self._root / name / "model"
        if not path.exists():
            from tests.builders.architectures import CASES
            from tests.builders.pipelines import save

            save(CASES[name].build(self._root / name), path)
        return path

    def __call__(self, name):
        from sae.diffusion.pipelines import load_model

        if name not in self._models:
            self._models[name] = load_model(str(self.directory(name)), "cpu")
        return self._models[name]


@pytest.fixture(scope="session")
def architectures(tmp_path_factory):
    return Architectures(tmp_path_factory.mktemp("architectures"))
