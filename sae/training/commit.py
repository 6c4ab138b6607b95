"""From trained weights to a committed SAE."""

from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from featurestore.format.records import Record
from featurestore.saes import commit_sae
from featurestore.store import Store
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, config_bytes, weights_bytes
from sae.feed.batches import Source
from sae.training.metrics import chunks_of_rows, evaluate
from sae.training.plots import PICTURE, draw_training
from sae.training.settings import Plan
from sae.training.state import State

_DEFAULTS = {"architecture": "topk", "group_sizes": [], "scale_inputs": False}


def existing(store: Store, name: str, plan: Plan) -> Record | None:
    """Return the record of an SAE that exists already, provided it was trained by this plan.

    Raises:
        SAEError: the name is taken by another SAE.
    """
    record = store.record("saes", name)
    if record is None:
        return None
    there, here = dict(record.made_by), plan.made_by()
    # An SAE of before a setting existed was trained by its default.
    old, new = _DEFAULTS | there.get("settings", {}), here["settings"]
    changed = [f"{k}: {old.get(k)} there, {v} here" for k, v in new.items() if old.get(k) != v]
    if not changed and there.get("data") != here["data"]:
        changed = ["activations were added or replaced since"]
    if changed:
        raise SAEError(f"{store.root} has another SAE {name!r} ({'; '.join(changed)}): use another --name.")
    return record


def finish(store: Store, name: str, plan: Plan, state: State, source: Source) -> Record:
    """Measure an SAE, write its three files and commit them; a picture of the training lies beside them."""
    sae = state.sae.cpu().requires_grad_(False)
    rows, indices, held_out = source.evaluation()
    metrics = evaluate(sae, chunks_of_rows(rows, indices)).to_json()
    metrics |= {"held_out": held_out, "n_samples": len(set(rows.sample_id[indices].tolist()))}
    columns = zip(*state.history, strict=True)
    metrics["training"] = dict(zip(("step", "fvu", "l0", "n_dead"), map(list, columns), strict=False))
    files = {
        CONFIG: config_bytes(plan.config),
        METRICS: (canonical_json(metrics) + "\n").encode(),
        WEIGHTS: weights_bytes(sae),
    }
    draw_training(metrics, f"SAE {name}", store.root / "saes" / name / PICTURE)
    return commit_sae(store, name, files, plan.made_by())
