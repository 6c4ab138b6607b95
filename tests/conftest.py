import pytest
import torch

from tests.pipelines import save, tiny_stable_diffusion

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A saved random-weight Stable Diffusion pipeline."""
    directory = tmp_path_factory.mktemp("model")
    return save(tiny_stable_diffusion(directory), directory / "tiny")


@pytest.fixture(scope="session")
def model(model_dir):
    from collectors.models import load_model

    return load_model(str(model_dir), "cpu")
