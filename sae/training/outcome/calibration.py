"""Give a TopK SAE a threshold in the place of its k: its latents then fire each by itself.

An edit of such an SAE needs no latent but those that are selected (docs/saes.md). What changes is
which latents are active: k on average instead of k at each position.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from featurestore.card import write_card
from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from featurestore.format.records import Record
from featurestore.format.schemas import check_name
from featurestore.saes import sae_hash, sae_record
from featurestore.store import Store
from sae.adding import add_sae, make_candidate
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, config_bytes, store_sae, weights_bytes
from sae.feed.rows import activation_rows, data_hash, rows_to_measure, split_rows
from sae.model import SAE
from sae.training.outcome.metrics import Metrics, chunks_of_rows, measure

_LOW_BITS = 15
_MOST_MAPS = 4000


class Calibrated(NamedTuple):
    """An SAE that was given a threshold, and what that changed on the same positions."""

    record: Record
    threshold: float
    before: Metrics
    after: Metrics
    gained: float
    """latents that fire at a position and were not among its k, on average"""
    lost: float
    """latents that were among the k of a position and do not fire, on average"""
    held_out: bool
    """whether the SAE was not trained on these positions"""


def calibrate(store: Store, name: str, new_name: str, device: torch.device) -> Calibrated:
    """Commit ``saes/<new_name>``: the TopK SAE ``name`` with the threshold that k latents per
    position exceed on average, over the samples that its training left out (4,000 maps at most).

    An SAE of that name that is the same to the last bit is returned as it is.

    Raises:
        SAEError: there is no such SAE, it is no TopK SAE, or the store has another SAE of the new
            name, or no activations of its hook.
        TableError: the new name cannot be one.
    """
    check_name(new_name, "an SAE's name")
    record, sae = sae_record(store, name), store_sae(store, name, device)
    if sae.config.architecture != "topk":
        raise SAEError(
            f"SAE {name!r} is {sae.config.architecture} and has a threshold: only a topk SAE is "
            f"given one."
        )
    settings = record.made_by.get("settings", {})
    branch, holdout = sae.config.branch, settings.get("holdout", 0.1)
    rows = activation_rows(store, sae.config.hook, branch)
    indices, held_out = rows_to_measure(*split_rows(rows, holdout))
    indices = indices[:: -(-len(indices) // _MOST_MAPS)]
    chunks = lambda: (chunk.x.to(device) for chunk in chunks_of_rows(rows, indices))  # noqa: E731
    threshold = find_threshold(sae, chunks)
    made = with_threshold(sae, threshold)
    before, after = (measure(one, chunks_of_rows(rows, indices)) for one in (sae, made))
    gained, lost = flips(sae, threshold, chunks())
    metrics = after.to_json() | {
        "held_out": held_out,
        "n_samples": len(set(rows.sample_id[indices].tolist())),
    }
    files = {
        CONFIG: config_bytes(made.config),
        METRICS: (canonical_json(metrics) + "\n").encode(),
        WEIGHTS: weights_bytes(made.cpu()),
    }
    about = {"sae": name, "sae_hash": sae_hash(record), "data": data_hash(rows.records)}
    candidate = make_candidate(
        store,
        new_name,
        made,
        files=files,
        made_by={"calibrated": about | {"n_positions": after.n_positions}},
        otherwise="use another --name",
    )
    add_sae(store, candidate)
    write_card(store)
    return Calibrated(candidate.record, threshold, before, after, gained, lost, held_out)


def with_threshold(sae: SAE, threshold: float) -> SAE:
    """Return an SAE of the same weights whose latents are active above a threshold."""
    made = SAE(replace(sae.config, architecture="batchtopk")).to(sae.W_enc.device)
    made.load_state_dict(sae.state_dict(), strict=False)
    made.threshold.data.fill_(threshold)
    return made.requires_grad_(False)


@torch.no_grad()
def find_threshold(sae: SAE, chunks: Callable[[], Iterable[Tensor]]) -> float:
    """Return the pre-activation that k latents per position exceed on average: of n positions the
    one of rank k · n + 1; 0 where fewer are positive.

    ``chunks`` is called twice and gives the same positions ``[n, d_in]``. A positive float32 is
    ordered as its bits are, so the first pass counts by their upper half, and the second by the
    lower half of the one number that is left: exact, and no pre-activation is kept.
    """
    upper = torch.zeros(2 ** (31 - _LOW_BITS), dtype=torch.int64)
    n_positions = 0
    for x in chunks():
        upper += _counts(_bits(sae, x) >> _LOW_BITS, len(upper))
        n_positions += len(x)
    wanted = sae.config.k * n_positions
    above = upper.flip(0).cumsum(0).flip(0)  # how many have these upper bits or larger ones
    if int(above[0]) <= wanted:
        return 0.0
    high = int((above > wanted).nonzero().max())
    lower = torch.zeros(2**_LOW_BITS, dtype=torch.int64)
    for x in chunks():
        bits = _bits(sae, x)
        inside = bits[(bits >> _LOW_BITS) == high]
        lower += _counts(inside & (2**_LOW_BITS - 1), len(lower))
    within = above[high] - upper[high] + lower.flip(0).cumsum(0).flip(0)
    low = int((within > wanted).nonzero().max())
    bits_found = torch.tensor((high << _LOW_BITS) | low, dtype=torch.int32)
    return float(bits_found.view(torch.float32))


def _bits(sae: SAE, x: Tensor) -> Tensor:
    """Return the positive pre-activations of positions, as the whole numbers that their bits
    are."""
    pre = sae.pre_acts(x).float()
    return pre[pre > 0].view(torch.int32)


def _counts(values: Tensor, n: int) -> Tensor:
    return torch.bincount(values, minlength=n).cpu()


@torch.no_grad()
def flips(sae: SAE, threshold: float, chunks: Iterable[Tensor]) -> tuple[float, float]:
    """Return how many latents a position gains and loses by the threshold, on average."""
    gained = lost = n_positions = 0
    for x in chunks:
        kept = sae.encode(x).values
        both = int((kept > threshold).sum())
        gained += int((sae.pre_acts(x) > threshold).sum()) - both
        lost += int((kept > 0).sum()) - both
        n_positions += len(x)
    return gained / n_positions, lost / n_positions
