"""Fault C2: black pictures counted as results, and in an evaluation as unlearned."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from collectors import CollectSettings, collect
from featurestore.cli import main
from featurestore.prompts import Prompt
from sae.diffusion.faults import picture_fault, say_faults
from sae.diffusion.pipelines import Model, RunSettings, generate, load_model
from sae.intervention.generate import generate_files
from tests.builders.pipelines import save

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
RUN = RunSettings(1, 1.0)
PROMPTS = [Prompt("a", 0, {}, 1), Prompt("b", 1, {}, 2)]


@pytest.fixture
def broken(model_dir):
    """A model whose autoencoder gives NaN for the second picture of a batch."""
    model = load_model(str(model_dir), "cpu")

    def spoil(module, args, output):
        output[1:] = torch.nan
        return output

    model.pipe.vae.decoder.conv_out.register_forward_hook(spoil)
    return model


def test_a_picture_that_is_not_finite_is_named_counted_and_recorded(broken, tmp_path):
    images = generate(broken, RUN, ["a", "b"], [0, 1])
    assert [picture_fault(image) for image in images] == [None, "not finite"]
    with pytest.warns(
        UserWarning, match=r"1 of 2 pictures are no results: 00001-b-1\.png \(not finite\)\."
    ):
        files = generate_files(tmp_path / "out", broken, PROMPTS, RUN, progress=False)
    lines = [
        json.loads(line) for line in (tmp_path / "out/generated.jsonl").read_text().splitlines()
    ]
    assert [line.get("fault") for line in lines] == [None, "not finite"]
    with Image.open(files[1]) as image:
        assert picture_fault(image) == "black"  # What a NaN becomes in a file.


def test_a_collection_records_it_beside_the_samples(broken, tmp_path):
    settings = CollectSettings(hooks=["unet.mid_block"], images=True)
    with pytest.warns(UserWarning, match=r"1 of 2 pictures are no results: \d+ \(not finite\)\."):
        report = collect(tmp_path / "s", broken, PROMPTS, RUN, settings, progress=False)
    ids = report.store.arrow("samples")["sample_id"].to_pylist()
    assert report.faults == {str(ids[1]): "not finite"}
    (record,) = report.store.records("samples")
    assert record.made_by["faults"] == report.faults


def test_a_flagged_picture_is_named_by_what_flagged_it():
    images = [Image.new("RGB", (8, 8), "red") for _ in range(2)]
    pipe = SimpleNamespace(
        _execution_device=torch.device("cpu"),
        vae_scale_factor=8,
        default_sample_size=1,
        scheduler=None,
    )

    class StableDiffusionPipeline:
        """Only what the run asks of a pipeline."""

        unet = torch.nn.Linear(1, 1)

        def __getattr__(self, name):
            return getattr(pipe, name)

        def __call__(self, **given):
            return SimpleNamespace(images=images, nsfw_content_detected=[True, False])

    StableDiffusionPipeline.unet.config = {"sample_size": 1}
    generate(Model("m", StableDiffusionPipeline(), 1, 1.0), RUN, ["a", "b"], [0, 1])
    assert [picture_fault(image) for image in images] == ["flagged by the safety checker", None]


def test_what_is_black_and_what_only_dark():
    dark = Image.new("RGB", (8, 8))
    assert picture_fault(dark) == picture_fault(Image.new("L", (8, 8))) == "black"
    dark.putpixel((3, 3), (0, 0, 1))
    assert picture_fault(dark) is None


def test_many_faults_are_one_line():
    assert say_faults({}, 7) == ""
    said = say_faults({f"{i}.png": "black" for i in range(7)}, 9)
    assert said.startswith("7 of 9 pictures are no results: 0.png (black), 1.png (black)")
    assert said.endswith("4.png (black), ….")


def test_the_command_line_says_it(model_dir, tmp_path, capsys):
    pipe = load_model(str(model_dir), "cpu").pipe
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.zero_()
        pipe.vae.decoder.conv_out.bias.fill_(-9.0)
    save(pipe, tmp_path / "black")
    options = [
        "--model",
        str(tmp_path / "black"),
        "--prompt",
        "a",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--quiet",
    ]
    words = r"1 of 1 pictures are no results: 00000-a-0\.png \(black\)\."
    with pytest.warns(UserWarning, match=words), pytest.raises(SystemExit, match="0"):
        main(["generate", *options, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert "1 pictures in" in capsys.readouterr().out
