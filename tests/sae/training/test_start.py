import itertools

import pytest
import torch

from sae.feed.batches import PositionBatches
from sae.training.settings import TrainSettings, default_lr, haste, make_plan
from sae.training.start import start_training
from tests.builders.saes import HOOK, make_store


@pytest.mark.parametrize(
    ("per_latent", "expected"), [(10, 2), (32, 2), (128, 2 ** (1 / 3)), (256, 1), (10_000, 1)]
)
def test_a_training_hurries_as_long_as_it_sees_few_positions_of_each_latent(per_latent, expected):
    assert haste(per_latent * 1024, 1024) == pytest.approx(expected)
    usual = 16e-4 * (20480 / 1024) ** 0.5
    assert default_lr(1024, per_latent * 1024) == pytest.approx(expected * usual)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"])
def test_a_short_training_begins_with_half_the_encoder(tmp_path, architecture):
    store = make_store(tmp_path / "store")

    def begun(steps):
        settings = TrainSettings(
            k=4, n_latents=48, steps=steps, batch_size=32, architecture=architecture
        )
        batches = PositionBatches(store, HOOK, "cond", 32, seed=0)
        plan = make_plan(store, HOOK, settings, batches)
        state, scale = start_training(plan, batches, torch.device("cpu"))
        x = torch.cat([*itertools.islice(batches.epoch(0), 1)]).float() / scale
        return plan, state.sae, x

    short, hurried, x = begun(24)
    long, usual, _ = begun(480)
    assert (short.haste, long.haste) == (2, 1)
    assert short.described()["haste"] == 2 and "haste" not in long.described()
    torch.testing.assert_close(usual.W_enc, usual.W_dec)
    torch.testing.assert_close(hurried.W_enc, hurried.W_dec / 2)
    torch.testing.assert_close(hurried.W_dec, usual.W_dec)
    n_active = [(sae.encode(x).values > 0).sum() for sae in (hurried, usual)]
    assert n_active[0] == n_active[1], "thresholds start from what the encoder gives"
