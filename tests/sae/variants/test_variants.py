"""BatchTopK, JumpReLU and Matryoshka SAEs against their formulas, dense and in float64."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from featurestore.errors import SAEError, UsageError
from sae.checkpoint import load_sae, save_sae, store_sae
from sae.codes import encode_rows
from sae.encoding import encode
from sae.intervention.change import rules_change
from sae.intervention.rules import Rule, join
from sae.model import SAEConfig
from sae.training.loss import training_loss
from sae.training.train import TrainSettings, train
from sae.variants import VARIANTS
from sae.variants.batchtopk import batch_top_k
from sae.variants.jumprelu import BANDWIDTH
from sae.variants.matryoshka import default_groups
from tests.builders.saes import HOOK, make_store, random_sae

GROUPS = {"group_sizes": (4, 12, 24)}
KINDS = {"batchtopk": {}, "jumprelu": {}, "matryoshka_batchtopk": GROUPS}
ALL = {"topk": {}, **KINDS}


def sae_of(architecture, **kwargs):
    """An SAE with random thresholds; where they are one number, that."""
    kind = {**ALL[architecture], **kwargs}
    sae = random_sae(architecture=architecture, **kind)
    with torch.no_grad():
        if architecture == "jumprelu":
            sae.threshold.uniform_(0.0, 1.5, generator=torch.Generator().manual_seed(5))
        elif architecture != "topk":
            sae.threshold.fill_(0.7)
    return sae


def pre_acts(sae, x):
    W_enc, b_enc, b_dec = (p.detach().double() for p in (sae.W_enc, sae.b_enc, sae.b_dec))
    return (x.double() - b_dec) @ W_enc.T + b_enc


@pytest.mark.parametrize("architecture", KINDS)
def test_with_a_threshold_a_latent_fires_above_it(architecture):
    sae, x = sae_of(architecture), torch.randn(3, 7, 16)
    pre = pre_acts(sae, x)
    expected = torch.where(pre > sae.threshold.double(), pre, 0)
    assert len(expected.count_nonzero(dim=-1).unique()) > 2, "positions differ in how many fire"
    codes = sae.encode(x)
    assert codes.values.shape[-1] == expected.count_nonzero(dim=-1).max()
    torch.testing.assert_close(sae.encode_dense(x).detach().double(), expected, atol=1e-5, rtol=0)
    x_hat = expected @ sae.W_dec.detach().double() + sae.b_dec.detach().double()
    torch.testing.assert_close(sae(x).detach().double(), x_hat, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", KINDS)
def test_some_latents_are_columns_of_the_dense_code(architecture):
    sae, x = sae_of(architecture), torch.randn(4, 5, 16)
    features = torch.tensor([3, 0, 39, 17])
    torch.testing.assert_close(sae.encode_some(x, features), sae.encode_dense(x)[..., features])


def test_a_threshold_below_zero_lets_no_negative_activation_through():
    sae, x = sae_of("batchtopk"), torch.randn(20, 16)
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    torch.testing.assert_close(sae.encode_dense(x), torch.relu(sae.pre_acts(x)))
    torch.testing.assert_close(sae.encode_some(x, torch.arange(40)), sae.encode_dense(x))


def test_nothing_fires_and_no_positions():
    sae = sae_of("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(100.0)
    codes = sae.encode(torch.randn(2, 3, 16))
    assert codes.values.shape == (2, 3, 1) and not codes.values.any()
    torch.testing.assert_close(sae(torch.randn(5, 16)), sae.b_dec.expand(5, 16))
    assert sae(torch.randn(0, 16)).shape == (0, 16)


@pytest.mark.parametrize("k", [1, 2, 7, 30])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_batch_top_k_keeps_the_largest_of_the_batch(k, spread):
    """With a large spread some rows take nearly everything: more than the first candidates of a
    row."""
    pre = torch.randn(25, 200) + spread * torch.randn(25, 1)
    values, indices = batch_top_k(pre, k)
    dense = torch.zeros_like(pre).scatter_add(1, indices, values)
    kept = pre.flatten().sort(descending=True).values[: 25 * k]
    expected = torch.where(pre >= kept[-1], pre, 0).relu()
    assert torch.equal(dense, expected)


def test_batch_top_k_of_equal_values_keeps_no_more_than_asked():
    values, _ = batch_top_k(torch.ones(6, 50), 2)
    assert (values > 0).sum() == 12
    assert batch_top_k(-torch.ones(6, 50), 2)[0].shape == (6, 1)


def naive_batchtopk(sae, x):
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    least = pre.flatten().sort(descending=True).values[sae.config.k * len(x) - 1]
    return pre * (pre >= least).detach()


def check_loss(sae, x, total):
    loss = training_loss(sae, x)
    torch.testing.assert_close(loss.total, total)
    found, expected = (
        torch.autograd.grad(
            value, [p for p in sae.parameters() if p.requires_grad], retain_graph=True
        )
        for value in (loss.total, total)
    )
    torch.testing.assert_close(found, expected)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3


def test_the_loss_of_batchtopk_equals_the_dense_formula():
    sae, x = sae_of("batchtopk").double(), torch.randn(30, 16, dtype=torch.float64)
    x_hat = naive_batchtopk(sae, x) @ sae.W_dec + sae.b_dec
    check_loss(sae, x, (x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_the_loss_of_matryoshka_is_the_mean_over_prefixes():
    sae, x = sae_of("matryoshka_batchtopk").double(), torch.randn(30, 16, dtype=torch.float64)
    z, variance = naive_batchtopk(sae, x), (x - x.mean(0)).square().sum()
    prefixes = [z[:, :n] @ sae.W_dec[:n] + sae.b_dec for n in (4, 16, 40)]
    check_loss(sae, x, sum((x - x_hat).square().sum() for x_hat in prefixes) / (3 * variance))


def test_the_loss_of_jumprelu_and_its_straight_through_gradients():
    """Gradients by hand: dense, position by position, from the formulas of the paper."""
    sae = sae_of("jumprelu", d_in=8, n_latents=30, k=5).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 8, dtype=torch.float64, generator=generator)
    variance = (x - x.mean(0)).square().sum()
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    active = (pre > sae.threshold).double().detach()
    z = (pre * active).detach().requires_grad_()
    l0 = active.sum(1).mean()
    fit = (x - z @ sae.W_dec - sae.b_dec).square().sum() / variance
    total = fit + (l0 / 5 - 1) ** 2
    loss = training_loss(sae, x)
    torch.testing.assert_close(loss.total, total)

    grad_z, grad_W_dec = torch.autograd.grad(fit, [z, sae.W_dec])
    kernel = ((pre - sae.threshold).abs() < BANDWIDTH / 2) & (pre > 0)
    assert kernel.sum() > 20
    grad_l0 = 2 * (l0 / 5 - 1) / 5 / len(x)
    expected = {
        "threshold": -(kernel * (sae.threshold * grad_z + grad_l0) / BANDWIDTH).sum(0),
        "W_enc": (grad_z * active).T @ (x - sae.b_dec),
        "b_enc": (grad_z * active).sum(0),
        "W_dec": grad_W_dec,
    }
    loss.total.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            sae.get_parameter(name).grad, gradient.detach(), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("architecture", KINDS)
def test_starting_thresholds_let_k_latents_fire_on_average(architecture):
    sae, x = random_sae(architecture=architecture, k=4, **KINDS[architecture]), torch.randn(300, 16)
    sae.variant.start(sae, x - sae.b_dec)
    assert len(sae.threshold.unique()) == 1
    assert sae.encode_dense(x).count_nonzero() == 4 * 300 - 1, (
        "all that training keeps but the threshold itself"
    )


def test_the_threshold_of_batchtopk_is_a_running_mean():
    sae = sae_of("batchtopk")
    sae.variant.after_step(sae, torch.tensor([[0.5, 0.0], [0.9, 2.0]]))
    torch.testing.assert_close(sae.threshold.detach(), torch.full((40,), 0.99 * 0.7 + 0.01 * 0.5))
    sae.variant.after_step(sae, torch.zeros(2, 2))
    torch.testing.assert_close(sae.threshold.detach(), torch.full((40,), 0.698))


@pytest.mark.parametrize("architecture", ALL)
def test_scaling_back_what_was_trained_on_scaled_inputs(architecture):
    sae, x = sae_of(architecture), 8.0 * torch.randn(20, 16)
    inner, reconstruction = sae.encode_dense(x / 8.0), sae(x / 8.0)
    norms = sae.W_dec.norm(dim=-1)
    sae.rescale_(8.0)
    torch.testing.assert_close(sae.encode_dense(x), 8.0 * inner)
    torch.testing.assert_close(sae(x), 8.0 * reconstruction)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), norms)


def norm_oracle(sae, x):
    """Reconstruction of an SAE that normalises each position, in NumPy and float64."""
    x = x.double().numpy()
    W_enc, b_enc, W_dec, b_dec = (
        p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    if sae.config.normalize_activations == "layer_norm":
        shift, scale = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        inner = (x - shift) / (scale + 1e-5)
    else:
        shift, scale = 0.0, np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
        inner = x / scale
    pre = (inner - (b_dec if sae.config.apply_b_dec_to_input else 0)) @ W_enc.T + b_enc
    threshold = np.sort(pre, -1)[..., [-sae.config.k]] if sae.config.architecture == "topk" else 0.7
    z = np.where(pre >= threshold, np.maximum(pre, 0), 0)
    return z, (z @ W_dec + b_dec) * scale + shift, scale, W_dec


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_normalised_positions_and_ablation_in_raw_space(architecture, normalize, apply_b_dec):
    sae = sae_of(architecture, normalize_activations=normalize, apply_b_dec_to_input=apply_b_dec)
    x = 5 * torch.randn(30, 16) * torch.rand(30, 1) + 2
    z, x_hat, scale, W_dec = norm_oracle(sae, x)
    np.testing.assert_allclose(sae.encode_dense(x).detach(), z, atol=1e-5)
    np.testing.assert_allclose(sae(x).detach(), x_hat, atol=3e-5)
    features = torch.from_numpy(np.sort(np.argsort((z > 0).sum(0))[-3:]))
    rule = Rule(features, torch.tensor([-1.0, -2.0, 0.5]), torch.tensor([0.3, 0.0, 0.9]))
    edited = z.copy()
    for i, factor, threshold in zip(*(part.tolist() for part in rule[:3]), strict=True):
        edited[:, i] = np.where(z[:, i] > threshold, factor * z[:, i], z[:, i])
    rows, change = rules_change(sae.requires_grad_(False), x, join([rule]))
    found = np.zeros_like(x_hat)
    found[rows.numpy()] = change.numpy()
    assert (edited != z).any()
    np.testing.assert_allclose(found, (edited - z) @ W_dec * scale, atol=3e-5)


def test_positions_of_zeros_can_be_normalised():
    for normalize in ("layer_norm", "constant_norm_rescale"):
        assert sae_of("topk", normalize_activations=normalize)(torch.zeros(2, 16)).isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 24])
def test_some_latents_of_topk_where_several_are_equal(k):
    sae = sae_of("topk", k=k).requires_grad_(False)
    sae.W_enc[8:16] = sae.W_enc[
        :8
    ]  # Latents 0 and 8, 1 and 9, … always are: at the last place the lower one counts.
    sae.b_enc[8:16] = sae.b_enc[:8]
    x, features = torch.randn(200, 16), torch.arange(23, -1, -1)
    dense = sae.encode_dense(x)
    torch.testing.assert_close(sae.encode_some(x, features), dense[:, features])
    assert k == 24 or bool(((dense[:, :8] > 0) & (dense[:, 8:16] == 0)).any())


@pytest.mark.parametrize("architecture", KINDS)
def test_ablation_never_encodes_everything(architecture, monkeypatch):
    sae, x = sae_of(architecture).requires_grad_(False), torch.randn(50, 16)
    features = torch.tensor([1, 8, 20])
    f = sae.encode_dense(x)[:, features]
    rule = Rule(features, torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([0.2, 0.9, 0.0]))
    monkeypatch.setattr(type(sae), "encode", lambda *args: pytest.fail("the full encoder ran"))
    rows, change = rules_change(sae, x, join([rule]))
    new = torch.where(f > rule.threshold, rule.factor * f, f)
    expected = (new - f) @ sae.W_dec[features]
    assert (change != 0).any(1).sum() == (new != f).any(1).sum() > 5
    assert len(rows) < len(x)
    torch.testing.assert_close(torch.zeros(50, 16).index_copy(0, rows, change), expected)


@pytest.mark.parametrize("architecture", KINDS)
def test_codes_and_statistics_of_positions_of_any_width(architecture):
    sae, x = sae_of(architecture), torch.randn(3, 6, 16)
    x[1] *= 0.2
    encoded = encode_rows(sae, x)
    dense = sae.encode_dense(x).detach().numpy()
    assert len({codes.shape[-1] for codes in (sae.encode(row).values for row in x)}) > 1
    for row in range(3):
        for position in range(6):
            active = np.flatnonzero(dense[row, position])
            assert encoded.features[row][position].as_py() == active.tolist()
            np.testing.assert_allclose(
                encoded.values[row][position].as_py(), dense[row, position, active], rtol=1e-3
            )
    at = encoded.row, encoded.feature
    np.testing.assert_allclose(encoded.sum, dense.sum(1)[at], rtol=1e-5)
    np.testing.assert_array_equal(encoded.n_positions, (dense > 0).sum(1)[at])
    assert len(encoded.sum) == (dense.sum(1) > 0).sum()


@pytest.mark.parametrize("architecture", ALL)
def test_saved_and_loaded(architecture, tmp_path):
    sae = sae_of(architecture, apply_b_dec_to_input=False, normalize_activations="layer_norm")
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.config == sae.config
    x = torch.randn(5, 16)
    assert torch.equal(loaded(x), sae(x))


def test_a_topk_configuration_says_nothing_of_what_it_has_not(tmp_path):
    save_sae(sae_of("topk"), tmp_path)
    assert not {"group_sizes", "normalize_activations", "apply_b_dec_to_input"} & set(
        json.loads((tmp_path / "config.json").read_text())
    )


SMALL = {"k": 2, "n_latents": 24, "batch_size": 16}


@pytest.mark.parametrize("architecture", KINDS)
def test_training_is_resumed_to_the_last_bit(architecture, tmp_path):
    settings = TrainSettings(**SMALL, steps=12, architecture=architecture)

    def stop_at(step):
        def on_report(progress):
            if progress.step == step:
                raise KeyboardInterrupt

        return on_report

    stores = [make_store(tmp_path / name) for name in ("whole", "parts")]
    train(stores[0], HOOK, "a", settings, progress=False, device="cpu")
    import sae.training.loop as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(module, "_REPORT_STEPS", 1)
        with pytest.raises(KeyboardInterrupt):
            train(
                stores[1], HOOK, "a", settings, progress=False, device="cpu", on_report=stop_at(7)
            )
        train(stores[1], HOOK, "a", settings, progress=False, device="cpu")
    one, other = ((store.root / "saes/a/sae.safetensors").read_bytes() for store in stores)
    assert one == other


@pytest.mark.parametrize("architecture", KINDS)
def test_training_learns_and_fires_k_latents(architecture, tmp_path):
    store = make_store(tmp_path / "s", n_shards=4, samples_per_shard=6)
    settings = TrainSettings(
        k=3, n_latents=48, steps=400, batch_size=128, architecture=architecture, lr=3e-3
    )
    train(store, HOOK, "a", settings, progress=False, device="cpu")
    metrics = json.loads((store.root / "saes/a/metrics.json").read_text())
    assert metrics["fvu"] < 0.4
    assert 2.4 < metrics["l0"] < 3.6
    sae = store_sae(store, "a")
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48))
    assert len(sae.threshold.unique()) == (48 if architecture == "jumprelu" else 1)
    encode(store, "a", progress=False, device="cpu")
    mean = np.mean([len(p) for row in store.arrow("codes/a")["features"].to_pylist() for p in row])
    assert 2.4 < mean < 3.6


def test_scaled_inputs_change_units_only(tmp_path):
    """The scaled training of scaled data is the training of the data: powers of two round alike."""
    store = make_store(tmp_path / "s")
    train(
        store,
        HOOK,
        "a",
        TrainSettings(**SMALL, steps=6, scale_inputs=True),
        progress=False,
        device="cpu",
    )
    train(store, HOOK, "b", TrainSettings(**SMALL, steps=6), progress=False, device="cpu")
    a, b = store_sae(store, "a"), store_sae(store, "b")
    assert not torch.equal(a.W_enc, b.W_enc)
    x = torch.from_numpy(next(store.activations(HOOK)).row(0).astype(np.float32))
    assert ((a(x) - x).norm() / x.norm()) < 0.7, "takes raw activations"


def test_an_sae_of_before_there_were_variants_is_the_topk_that_it_was(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s")
    settings = TrainSettings(**SMALL, steps=2)
    record = train(store, HOOK, "a", settings, progress=False, device="cpu")
    new = {"architecture", "group_sizes", "scale_inputs"}
    old = {key: value for key, value in record.made_by["settings"].items() if key not in new}
    assert len(old) == len(record.made_by["settings"]) - 3
    before = dataclasses.replace(record, made_by={**record.made_by, "settings": old})
    monkeypatch.setattr(store, "record", lambda table, shard: before)
    assert train(store, HOOK, "a", settings, progress=False) is before
    with pytest.raises(
        SAEError, match="another SAE 'a' \\(architecture: topk there, jumprelu here"
    ):
        train(
            store, HOOK, "a", dataclasses.replace(settings, architecture="jumprelu"), progress=False
        )


def test_default_groups_are_all_latents():
    assert default_groups(20480) == (640, 1280, 2560, 5120, 10880)
    assert default_groups(8) == (1, 2, 5)
    assert default_groups(1) == (1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "batchtop"},
            r"architecture 'batchtop' is not known. Did you mean 'batchtopk'",
        ),
        (
            {"group_sizes": (4, 20)},
            "group sizes are for matryoshka_batchtopk, the architecture is topk",
        ),
        (
            {"architecture": "matryoshka_batchtopk", "group_sizes": (4, 4)},
            r"group sizes \[4, 4\] must be positive and add up to the 24 latents",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(
            make_store(tmp_path / "s"),
            HOOK,
            "a",
            TrainSettings(**SMALL, steps=1, **settings),
            progress=False,
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "matryoshka_batchtopk", "group_sizes": (3, 4)},
            r"group_sizes \[3, 4\] do not fit n_latents",
        ),
        ({"group_sizes": (8,)}, "group_sizes are for 'matryoshka_batchtopk'"),
        (
            {"normalize_activations": "l2"},
            "normalize_activations 'l2' is not known. Known: none, layer_norm",
        ),
        ({"k": 0}, "k = 0 does not fit n_latents = 8: it must be in 1…8"),
        ({"k": 9, "architecture": "jumprelu"}, "it must be in 0…8"),
    ],
)
def test_configurations_that_do_not_fit(fields, message):
    with pytest.raises(SAEError, match=message):
        SAEConfig(**{"d_in": 4, "n_latents": 8, "k": 2, **fields})


def test_the_registry_is_closed():
    assert list(VARIANTS) == list(ALL)
