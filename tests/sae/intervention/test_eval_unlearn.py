"""The technique for eval-unlearn draws what ``generate_images`` draws; the released package finds
and runs it."""

import importlib.metadata

import numpy as np
import pytest

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from sae.checkpoint import save_sae
from sae.intervention.eval_unlearn import FeatureStoreTechnique
from sae.intervention.generate import generate_images
from sae.intervention.settings import Intervention
from tests.builders.selections import RUN, make_sae, make_selection, timesteps_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.fixture
def options(model, model_dir, tmp_path):
    from featurestore.saes import sae_files_hash

    save_sae(make_sae(), tmp_path / "s")
    rows = [(step, feature, 0.4, 0.0) for step in range(3) for feature in range(0, 64, 3)]
    selection = make_selection(
        model, rows, timesteps_of(model), sae_hash=sae_files_hash(tmp_path / "s")
    )
    selection.save(tmp_path / "neon.json")
    return {
        "selections": str(tmp_path / "neon.json"), "model_id": str(model_dir), "saes": [str(tmp_path / "s")],
        "device": "cpu", "num_inference_steps": 3, "guidance_scale": 3.0, "strength": -30.0, "erase_concept": "neon",
    }  # fmt: skip


def drawn(model, options, interventions):
    from pathlib import Path

    asked = [Prompt(text, 7 + i, {}, i + 1) for i, text in enumerate(("a cat", "a b"))]
    saes = [Path(directory) for directory in options["saes"]]
    return [
        np.asarray(image)
        for image in generate_images(model, asked, RUN, interventions, saes=saes, progress=None)
    ]


def test_it_draws_what_generate_draws(model, options, tmp_path):
    from featurestore import Selection

    technique = FeatureStoreTechnique(**options)
    found = [np.asarray(image) for image in technique.generate(["a cat", "a b"], seed=7)]
    edited = drawn(
        model, options, [Intervention(Selection.load(tmp_path / "neon.json"), strength=-30.0)]
    )
    assert all(np.array_equal(a, b) for a, b in zip(found, edited, strict=True))
    plain = drawn(model, options, [])
    assert not all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"selection": "x"},
            "technique featurestore has no option 'selection'. Did you mean 'selections'",
        ),
        ({"selections": []}, "give the paths of selection files in 'selections'"),
    ],
)
def test_a_wrong_option_is_one_line(options, changes, message):
    with pytest.raises(UsageError) as raised:
        FeatureStoreTechnique(**(options | changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_package_is_installed_with_the_entry_point():
    (point,) = importlib.metadata.entry_points(group="eval_unlearn.techniques", name="featurestore")
    assert point.load() is FeatureStoreTechnique


@pytest.mark.peers
def test_the_released_package_finds_and_runs_it(options):
    registry = pytest.importorskip("eval_unlearn.registry.local")
    entrypoints = pytest.importorskip("eval_unlearn.registry.entrypoints")
    entrypoints.load_entrypoints()
    technique = registry.get_technique("featurestore")(**options)
    assert [image.size for image in technique.generate(["a cat"], seed=0)]
