"""Pictures with interventions."""

import pytest

from featurestore.errors import SelectionError
from featurestore.prompts import Prompt
from featurestore.saes import sae_files_hash
from sae.checkpoint import save_sae
from sae.evaluation.pictures import read_pictures
from sae.intervention.generate import generate_files, generate_images
from sae.intervention.settings import Intervention
from tests.builders.edits import strong
from tests.builders.selections import RUN, make_sae

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def test_generate_attaches_the_released_arithmetic_anew_for_every_batch(model, tmp_path):
    sae, directory = make_sae(3), tmp_path / "s"
    save_sae(sae, directory)
    selection = strong(model, sae_hash=sae_files_hash(directory))
    prompts = [Prompt("a", seed, {}, 1) for seed in (0, 1, 0)]
    how = {"saes": [directory], "progress": None}
    images = list(
        generate_images(
            model, prompts, RUN, [Intervention(selection)], mode="saeuron", batch_size=1, **how
        )
    )
    assert images[0].tobytes() == images[2].tobytes() != images[1].tobytes()
    other = strong(model, sae_hash="f" * 64)
    with pytest.raises(
        SelectionError, match=r"was made with SAE 's' \(ffffffffffff…\), .* is another"
    ):
        list(generate_images(model, prompts, RUN, [Intervention(other)], **how))


def test_of_what_was_drawn_with_a_guidance_of_its_own_only_labels_are_read_as_labels(
    model, tmp_path
):
    """'judge' refused such a folder: it took the scale for a family that the judge does not know."""
    prompts = [Prompt("a", 0, {"style": "neon", "object": None}, 1, guidance=2.0)]
    generate_files(tmp_path, model, prompts, RUN, progress=False)
    (one,) = read_pictures(tmp_path)
    assert (one.labels, one.seed) == ({"style": "neon"}, 0)
