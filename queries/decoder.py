"""An SAE's decoder as a table, a row for each feature, with what the store knows about it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SAEError
from featurestore.format import durable
from featurestore.saes import load_config, sae_record, weights_path
from featurestore.store import Store
from queries.answers import ask
from queries.connection.statement import sql
from queries.connection.text import quote_text


def decoder_table(store: Store, sae: str, branch: str = "cond") -> pa.Table:
    """Return ``feature, text, <family>…, <family>_score…, density, peak, vector``, a row for each
    latent.

    ``vector`` is the row of ``W_dec``, float32 ``[d_in]``. A family's columns are the concept that
    the feature has its largest mean score for, and that score; null where no mean is positive. A
    family of one concept has no column. ``density`` is the share of the encoded samples in which it
    fires, ``peak`` its largest activation, ``text`` all of that in words.

    Raises:
        SAEError: there is no such SAE, or its file holds no decoder.
        DamageError: a file is not what its record says.
    """
    n_latents = load_config(store, sae)["n_latents"]
    vectors = _decoder(store, sae)
    density, peak = _statistics(store, sae, branch, n_latents)
    names = {
        family: _names(store, sae, family, branch, n_latents=n_latents)
        for family, n in _families(store, sae, branch).items()
        if n > 1
    }
    texts = [
        _text(feature, {family: of[feature] for family, (of, _) in names.items()}, often)
        for feature, often in enumerate(density)
    ]
    named = {family: pa.array(of, pa.string()) for family, (of, _) in names.items()}
    scores = {f"{family}_score": pa.array(of, pa.float64()) for family, (_, of) in names.items()}
    flat = pa.array(vectors.ravel())
    return pa.table(
        {
            "feature": pa.array(range(n_latents), pa.int32()),
            "text": texts,
            **named,
            **scores,
            "density": density,
            "peak": peak,
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(
                pa.list_(pa.float32())
            ),
        }
    )


def export_decoder(store: Store, sae: str, path: Path, branch: str = "cond") -> int:
    """Write :func:`decoder_table` as a Parquet file, in place of any file at ``path``; return its
    number of rows.

    Raises:
        SAEError: there is no such SAE, or its file holds no decoder.
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    durable.check_file(path)
    rows = decoder_table(store, sae, branch)
    durable.write_file(path, lambda file: pq.write_table(rows, file, compression="zstd"))
    return rows.num_rows


def _decoder(store: Store, sae: str) -> np.ndarray:
    """Return ``W_dec`` as float32 ``[n_latents, d_in]``."""
    from safetensors import SafetensorError, safe_open

    store.check([sae_record(store, sae)])
    path = weights_path(store, sae)
    try:
        with safe_open(path, framework="np") as weights:
            found: np.ndarray = weights.get_tensor("W_dec")
            return found.astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise SAEError(
            f"{path} cannot be read as weights ({error}): run 'featurestore verify {store.root}'."
        ) from error


def _families(store: Store, sae: str, branch: str) -> dict[str, int]:
    """Return each family with its number of concepts."""
    found = ask(store, "concepts", {"sae": sae, "branch": branch}).to_pylist()
    families: dict[str, int] = {}
    for row in found:
        families[row["family"]] = families.get(row["family"], 0) + (row["n_encoded"] > 0)
    return families


def _names(
    store: Store, sae: str, family: str, branch: str, *, n_latents: int
) -> tuple[list[str | None], list[float | None]]:
    """Return every feature's concept and its mean score."""
    rows = ask(store, "feature_names", {"sae": sae, "family": family, "branch": branch})
    names: list[str | None] = [None] * n_latents
    scores: list[float | None] = [None] * n_latents
    for row in rows.to_pylist():
        names[row["feature"]], scores[row["feature"]] = row["concept"], row["mean_score"]
    return names, scores


def _statistics(
    store: Store, sae: str, branch: str, n_latents: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``density`` and ``peak`` of every feature, 0 where it never fires."""
    of = f"sae = {quote_text(sae)} and branch = {quote_text(branch)}"
    rows = sql(
        store,
        f"""select feature,
                   count(distinct sample_id)
                   / (select count(distinct sample_id) from codes where {of}) as density,
                   max("max") as peak
            from stats where {of} group by feature""",
    )
    density, peak = np.zeros(n_latents), np.zeros(n_latents)
    where = rows["feature"].to_numpy()
    density[where], peak[where] = rows["density"].to_numpy(), rows["peak"].to_numpy()
    return density, peak


def _text(feature: int, names: dict[str, str | None], density: float) -> str:
    said = ", ".join(f"{family} {name}" for family, name in names.items() if name is not None)
    often = f"fires in {density:.0%} of the samples" if density else "never fires"
    return f"feature {feature}: {said or 'no concept'}; {often}"
