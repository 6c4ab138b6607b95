"""Checkpoints in the layouts of other libraries, and what those libraries compute of them, written
from their formulas.

The references are dense, in NumPy and float64, and share nothing with the package;
``tests/sae/formats/libraries/test_peers.py`` compares with the libraries themselves.
"""

import json

import numpy as np
import safetensors.torch
import torch

from sae.formats.exchange import foreign_sae
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import read_checkpoint

D_IN, N_LATENTS, K = 12, 30, 4


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(d=D_IN, n=N_LATENTS):
    """Random weights; decoder rows of any norm."""
    W_dec = randn(n, d, seed=3) * (
        0.5 + torch.rand(n, 1, generator=torch.Generator().manual_seed(9))
    )
    return (
        randn(n, d, seed=1, scale=0.4),
        randn(n, seed=2, scale=0.3),
        W_dec,
        randn(d, seed=4, scale=0.5),
    )


def inputs(n=60, d=D_IN):
    return 1.5 * randn(n, d, seed=7) + 0.3


def loaded(path, format="auto", choice=Choice()):  # noqa: B008
    return foreign_sae(path, read_checkpoint(path, format, choice))


def check_same(sae, reference, x=None):
    """Codes and reconstruction, and what an ablation of three latents changes, equal the
    reference's."""
    x = inputs() if x is None else x
    z, x_hat = reference(x)
    assert (z > 0).any(0).sum() > 5
    np.testing.assert_allclose(sae.encode_dense(x).double(), z, atol=1e-5)
    np.testing.assert_allclose(sae(x).double(), x_hat, atol=2e-5)
    features = torch.from_numpy(np.sort(np.argsort((z > 0).sum(0))[-3:]))
    np.testing.assert_allclose(sae.encode_some(x, features), z[:, features], atol=1e-5)
    return z, x_hat


def write_json(directory, name, fields):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(fields))


def arrays(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


def topk(pre, k):
    kept = np.argsort(-pre, axis=-1, kind="stable")[:, :k]
    z = np.zeros_like(pre)
    np.put_along_axis(z, kept, np.maximum(np.take_along_axis(pre, kept, -1), 0), -1)
    return z


def above(pre, threshold):
    return np.maximum(pre, 0) * (pre > threshold)


def sparsify(directory, **changes):
    """EleutherAI's sparsify: TopK. ``changes`` go into ``cfg.json``; SAeUron's too."""
    W_enc, b_enc, W_dec, b_dec = weights()
    cfg = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N_LATENTS, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_IN,
    }  # fmt: skip
    write_json(
        directory, "cfg.json", {key: v for key, v in (cfg | changes).items() if v is not None}
    )
    named = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    safetensors.torch.save_file(named, directory / "sae.safetensors")

    def reference(x):
        x, We, be, Wd, bd = arrays(x, W_enc, b_enc, W_dec, b_dec)
        shift, scale = 0.0, 1.0
        if changes.get("input_unit_norm"):
            shift = x.mean(-1, keepdims=True)
            scale = (x - shift).std(-1, ddof=1, keepdims=True)
            x = (x - shift) / (scale + 1e-5)
        z = topk(np.maximum((x - bd) @ We.T + be, 0), K)
        return z, (z @ Wd + bd) * scale + shift

    return reference


def saelens(directory, architecture="topk", hook="", **changes):
    """SAELens 6: ``W_enc [d, L]``; codes are rescaled by decoder norms where the configuration says
    so."""
    W_enc, b_enc, W_dec, b_dec = weights()
    thresholds = torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(5)) * 4
    cfg = {
        "d_in": D_IN, "d_sae": N_LATENTS, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "architecture": architecture,
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": hook or None},
    }  # fmt: skip
    tensors = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if architecture == "topk":
        cfg |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = thresholds
    cfg |= changes
    write_json(
        directory, "cfg.json", {key: value for key, value in cfg.items() if value is not None}
    )
    safetensors.torch.save_file(tensors, directory / "sae_weights.safetensors")

    def reference(x):
        x, We, be, Wd, bd, theta = arrays(x, W_enc, b_enc, W_dec, b_dec, thresholds)
        out = lambda y: y  # noqa: E731
        if cfg["normalize_activations"] == "layer_norm":
            mu = x.mean(-1, keepdims=True)
            std = (x - mu).std(-1, ddof=1, keepdims=True)
            x, out = (x - mu) / (std + 1e-5), lambda y: y * std + mu
        if cfg["normalize_activations"] == "constant_norm_rescale":
            coefficient = D_IN**0.5 / np.linalg.norm(x, axis=-1, keepdims=True)
            x, out = x * coefficient, lambda y: y / coefficient
        pre = (x - bd * cfg["apply_b_dec_to_input"]) @ We.T + be
        norms = (
            np.linalg.norm(Wd, axis=1)
            if cfg.get("rescale_acts_by_decoder_norm")
            else np.ones(len(Wd))
        )
        threshold = theta if architecture == "jumprelu" else 0
        z = topk(pre * norms, K) if architecture == "topk" else above(pre, threshold)
        return z, out((z / norms) @ Wd + bd)

    return reference


def saelens_5(directory, architecture="standard", activation="relu", scaled=False, **changes):
    """SAELens before 6: no metadata; what fires says ``activation_fn_str``; the decoder may have
    factors of its own."""
    W_enc, b_enc, W_dec, b_dec = weights()
    thresholds = torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(5)) * 4
    factor = 0.5 + torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(6))
    cfg = {
        "architecture": architecture, "d_in": D_IN, "d_sae": N_LATENTS, "activation_fn_str": activation,
        "activation_fn_kwargs": {"k": K} if activation == "topk" else {}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": scaled, "context_size": 128, "model_name": "sd", "hook_name": "unet.mid_block",
        "hook_layer": 0, "hook_head_index": None, "prepend_bos": False, "dataset_path": "x", "normalize_activations": "none",
        "dataset_trust_remote_code": True, "dtype": "float32", "device": "cpu", "sae_lens_training_version": "5.3.2",
    }  # fmt: skip
    write_json(directory, "cfg.json", cfg | changes)
    tensors = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if architecture == "jumprelu":
        tensors["threshold"] = thresholds
    if scaled:
        tensors["scaling_factor"] = factor
    safetensors.torch.save_file(tensors, directory / "sae_weights.safetensors")

    def reference(x):
        x, We, be, Wd, bd, theta, s = arrays(x, W_enc, b_enc, W_dec, b_dec, thresholds, factor)
        pre = (x - bd) @ We.T + be
        z = (
            topk(pre, K)
            if activation == "topk"
            else above(pre, theta if architecture == "jumprelu" else 0)
        )
        return z, (z * (s if scaled else 1)) @ Wd + bd

    return reference


def dictionary_learning(directory, kind, threshold=1.3, buffer=None, **changes):
    """dictionary_learning: a state dict and the trainer's configuration."""
    W_enc, b_enc, W_dec, b_dec = weights()
    thresholds = torch.rand(N_LATENTS, generator=torch.Generator().manual_seed(5)) * 4
    linear = {
        "encoder.weight": W_enc,
        "encoder.bias": b_enc,
        "decoder.weight": W_dec.T,
        "b_dec": b_dec,
    }
    matrices = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    counted = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    state = {
        "AutoEncoderTopK": linear | counted,
        "BatchTopKSAE": linear | counted,
        "MatryoshkaBatchTopKSAE": matrices | counted | {"group_sizes": torch.tensor([5, 10, 15])},
        "JumpReluAutoEncoder": matrices | {"threshold": thresholds},
        "AutoEncoder": {
            ("bias" if key == "b_dec" else key): value for key, value in linear.items()
        },
    }[kind]
    trainer = {
        "dict_class": kind,
        "activation_dim": D_IN,
        "dict_size": N_LATENTS,
        "lr": 1e-3,
        "layer": 3,
    }
    if "k" in state:
        trainer["k"] = K
    config = {"trainer": trainer | changes} | ({"buffer": buffer} if buffer else {})
    write_json(directory, "config.json", config)
    torch.save(state, directory / "ae.pt")

    def reference(x):
        x, We, be, Wd, bd, theta = arrays(x, W_enc, b_enc, W_dec, b_dec, thresholds)
        pre = (x - (0 if kind == "JumpReluAutoEncoder" else bd)) @ We.T + be
        if kind == "AutoEncoderTopK":
            z = topk(np.maximum(pre, 0), K)
        else:
            z = above(pre, {"JumpReluAutoEncoder": theta, "AutoEncoder": 0}.get(kind, threshold))
        if (
            kind == "AutoEncoder"
        ):  # load_dictionary gives it unit rows: the same reconstruction of other codes.
            norms = np.linalg.norm(Wd, axis=1)
            z, Wd = z * norms, Wd / norms[:, None]
        return z, z @ Wd + bd

    return reference


def sdxl_unbox(directory, steerers=False, **extra):
    """sdxl-unbox: TopK of raw pre-activations, then ReLU; ``mean.pt`` and ``std.pt`` are of the
    latents."""
    W_enc, b_enc, W_dec, b_dec = weights()
    config = {
        "n_dirs_local": N_LATENTS,
        "d_model": D_IN,
        "k": K,
        "auxk": 6,
        "dead_steps_threshold": 2441,
    }
    write_json(directory, "config.json", config | ({"auxk_coef": 1 / 32} if steerers else {}))
    state = torch.nn.Module().state_dict() | {
        "pre_bias": b_dec,
        "latent_bias": b_enc,
        "stats_last_nonzero": torch.zeros(N_LATENTS, dtype=torch.int64),
        "encoder.weight": torch.nn.Parameter(W_enc),
        "decoder.weight": W_dec.T,  # column-major, as the library keeps it
    }
    torch.save({"state_dict": state, **extra}, directory / "state_dict.pth")
    for name in ("mean", "std"):
        torch.save(torch.rand(N_LATENTS), directory / f"{name}.pt")

    def reference(x):
        x, We, be, Wd, bd = arrays(x, W_enc, b_enc, W_dec, b_dec)
        z = topk((x - bd) @ We.T + be, K)
        return z, z @ Wd + bd

    return reference


def overcomplete(path, kind="topk", threshold=1.3, encoder="linear", multiplier=0.4, unit=True):
    """overcomplete: no bias in the decoder, unit rows times ``exp(multiplier)``; ``a ≥ θ``
    fires."""
    W_enc, b_enc, W_dec, _ = weights()
    if unit:
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    log_thresholds = randn(N_LATENTS, seed=5)
    state = {"dictionary._weights": W_dec, "dictionary.multiplier": torch.tensor(multiplier)}
    if encoder == "linear":
        state |= {"encoder.final_block.0.weight": W_enc, "encoder.final_block.0.bias": b_enc}
    if encoder == "untied":
        state |= {"encoder.weight": W_enc}
    if encoder == "layer norm":
        state |= {"encoder.final_block.0.weight": W_enc, "encoder.final_block.0.bias": b_enc}
        state |= {"encoder.final_block.1.weight": torch.ones(N_LATENTS)}
    if kind == "jump":
        state["thresholds"] = log_thresholds
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)

    def reference(x):
        x, We, be, Wd, theta = arrays(x, W_enc, b_enc, W_dec, log_thresholds)
        if kind == "relu":
            z = np.maximum(x @ We.T + be, 0)
            return z, z @ (Wd * np.exp(multiplier))
        pre = np.maximum(x @ We.T + (be if encoder == "linear" else 0), 0)
        least = np.exp(theta) if kind == "jump" else threshold
        z = topk(pre, K) if kind == "topk" else pre * (pre >= least)
        return z, z @ (Wd * np.exp(multiplier))

    return reference
