import dataclasses
import json

import pytest
import torch

from collectors.collection import CollectSettings
from collectors.live import train_live
from featurestore import Store
from featurestore.cli import main
from featurestore.errors import UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.checkpoint import store_sae
from sae.diffusion.pipelines import RunSettings
from sae.training import loop as training
from sae.training.train import TrainSettings

NAMES = {"up": "unet.up_blocks.1.attentions.1", "mid": "unet.mid_block.attentions.0"}
PROMPTS = [Prompt(f"picture {i}", i, {}, i + 1) for i in range(12)]
RUN = RunSettings(n_steps=2, guidance=3.0)
SETTINGS = TrainSettings(k=4, n_latents=64, batch_size=64)


def live(root, model, scratch, settings=SETTINGS, **kwargs):
    scratch.mkdir(exist_ok=True)
    return train_live(
        root,
        model,
        PROMPTS,
        RUN,
        hooks=NAMES,
        settings=settings,
        what=CollectSettings(batch_size=2),
        **{"chunk_samples": 4, "progress": False, "device": "cpu", "scratch": scratch} | kwargs,
    )


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    return live(root / "store", model, root / "scratch"), root


def test_saes_are_trained_on_every_hook_and_nothing_else_is_left(whole):
    records, root = whole
    store = Store.open(root / "store")
    assert [record.shard for record in records] == ["up", "mid"]
    assert store.tables() == [] and verify(store) == [] and list((root / "scratch").iterdir()) == []
    for name, hook in NAMES.items():
        sae = store_sae(store, name)
        metrics = json.loads((store.root / f"saes/{name}/metrics.json").read_text())
        assert (sae.config.hook, sae.config.run_id) == (hook, store.run_id)
        assert metrics["held_out"] and metrics["n_samples"] + 1 <= len(PROMPTS)
        n_train = len(PROMPTS) - metrics["n_samples"]
        positions = sae.config.height * sae.config.width * 2
        chunks = [min(4, n_train - start) for start in range(0, n_train, 4)]
        assert records[0].made_by["settings"]["batch_size"] == 64
        of_mine = next(record for record in records if record.shard == name)
        assert of_mine.made_by["settings"]["steps"] == sum(n * positions // 64 for n in chunks)


def test_an_interrupted_one_ends_with_the_same_weights(whole, model, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def stop(progress):
        if progress.step == 20:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        live(tmp_path / "store", model, tmp_path / "scratch", on_report=stop)
    assert list((tmp_path / "scratch").iterdir()) == []
    live(tmp_path / "store", model, tmp_path / "scratch")
    for name in NAMES:
        one, other = (
            store_sae(Store.open(root / "store"), name).state_dict()
            for root in (whole[1], tmp_path)
        )
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_too_little_for_a_batch_and_too_many_processes_are_refused(model, tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match="a batch of 999999 positions is more than a chunk of 4 samples has"
    ):
        live(
            tmp_path / "store",
            model,
            tmp_path / "scratch",
            dataclasses.replace(SETTINGS, batch_size=999_999),
        )
    with pytest.raises(
        UsageError, match=r"^12 prompts in chunks of 0: expected at least 1 of each"
    ):
        live(tmp_path / "store", model, tmp_path / "scratch", chunk_samples=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="runs in one process"):
        live(tmp_path / "store", model, tmp_path / "scratch")
    assert not (tmp_path / "store").exists()


def test_the_command_line(model_dir, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p.prompt}) for p in PROMPTS[:6])
    )
    command = ["train-live", "--model", str(model_dir), "--prompts", str(tmp_path / "p.jsonl"), "--store", str(tmp_path / "s"),
               "--hook", NAMES["mid"], "--name", "m", "--steps", "2", "--guidance", "3", "--k", "4", "--expansion", "2",
               "--positions-a-step", "64", "--chunk", "3", "--quiet"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    assert "SAE 'm': 64 latents on 32 channels, k 4" in capsys.readouterr().out
