import os

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

from tests.builders.pipelines import save, tiny_stable_diffusion

torch.set_num_threads(1)

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


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """No test reads or writes the user's own cache of what was verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache") / "featurestore"))
        yield


@pytest.fixture(autouse=True)
def nothing_left_to_say():
    """What a test leaves to be said at the end of a command is not said by the next one's."""
    yield
    from featurestore.format import checksums

    checksums._anew.clear()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A saved random-weight Stable Diffusion pipeline."""
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
