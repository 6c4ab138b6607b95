"""The page that goes with an exported SAE on a hub: what it is, how good, how it is loaded."""

import json
from typing import Any

from featurestore.saes import load_config, load_metrics
from featurestore.store import Store

_LIBRARIES = {"sparsify": "sparsify", "saelens": "saelens"}
_LOADING = {
    "sparsify": "from sparsify import SparseCoder\n\nsae = "
    'SparseCoder.load_from_disk("{directory}")',
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{directory}")',
}


def model_card(store: Store, name: str, format: str) -> str:
    """Return the Markdown of an SAE's README.md: hook, sizes, FVU, L0, dead latents, and the lines
    that load it.

    ``base_model`` is given where the store's run names a model of a hub.

    Raises:
        SAEError: the store has no such SAE, or a file of it was changed.
    """
    config, metrics, run = load_config(store, name), load_metrics(store, name), store.run or {}
    model = str(run.get("model", ""))
    head = [
        "---",
        f"library_name: {_LIBRARIES[format]}",
        "tags:",
        "- sparse-autoencoder",
        "- diffusion",
    ]
    head += [f"base_model: {json.dumps(model)}"] if model.count("/") == 1 else []
    lines = [*head, "---", "", f"# SAE `{name}`", ""]
    lines += [
        f"A sparse autoencoder on the {config['io']} of `{config['hook']}`"
        + (f" of {model}." if model else "."),
        "",
    ]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in _rows(config, metrics)]
    loading = _LOADING[format].format(directory=config["hook"] if format == "sparsify" else name)
    lines += ["", "```python", loading, "```", ""]
    lines += ["Or with featurestore, which checks that it is the same function:", ""]
    lines += ["```", f"featurestore sae import OWNER/NAME --store ./store --name {name}", "```", ""]
    if run:
        text = json.dumps(run, indent=2, sort_keys=True, ensure_ascii=False)
        lines += ["Trained on activations of these runs:", "", "```json", text, "```", ""]
    return "\n".join(lines)


def _rows(config: dict[str, Any], metrics: dict[str, Any] | None) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("architecture", f"`{config['architecture']}`"),
        ("channels (`d_in`)", config["d_in"]),
        ("latents (`n_latents`)", config["n_latents"]),
        ("active latents per position (`k`)", config["k"] or "by threshold"),
        ("map", f"{config['height']} × {config['width']}" if config["height"] else "not known"),
        ("branch", config["branch"] or "not known"),
    ]
    if metrics is None:
        return [*rows, ("FVU, L0, dead latents", "not measured: it was imported")]
    seen = "held-out samples" if metrics.get("held_out") else "training samples"
    fvu = "undefined: they are all equal" if metrics["fvu"] is None else f"{metrics['fvu']:.4f}"
    return [
        *rows,
        (f"FVU on {seen}", fvu),
        ("L0", f"{metrics['l0']:.1f}"),
        ("latents that never fired there", f"{metrics['n_dead']} of {config['n_latents']}"),
    ]
