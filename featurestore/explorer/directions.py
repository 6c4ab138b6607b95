"""The decoder's directions that lie nearest to a feature's, read from the weights' file a part at a
time; no torch."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import QueryError, SAEError
from featurestore.saes import load_config, sae_record, weights_path
from featurestore.store import Store

_ROWS_AT_ONCE = 2048
SCHEMA = pa.schema({"feature": pa.int32(), "cosine": pa.float64()})


def nearest_directions(store: Store, sae: str, feature: int, top: int = 10) -> pa.Table:
    """Return ``feature, cosine``: the latents whose rows of ``W_dec`` point most in the direction
    of this feature's.

    Ordered by falling cosine, then feature; the feature itself is left out.

    Raises:
        QueryError: the SAE has no such feature.
        SAEError: there is no such SAE, or its file holds no decoder.
        DamageError: the file is not what its record says.
    """
    config = load_config(store, sae)
    n_latents = config["n_latents"]
    if not 0 <= feature < n_latents:
        raise QueryError(f"SAE {sae!r} has the features 0 to {n_latents - 1}, not {feature}.")
    store.check([sae_record(store, sae)])
    cosine = _cosines(store, sae, feature, n_latents)
    order = np.lexsort((np.arange(n_latents), -cosine))
    order = order[order != feature][:top]
    return pa.table({"feature": order.astype(np.int32), "cosine": cosine[order]}, SCHEMA)


def python_lines(store: Store, sae: str, feature: int | str, top: int | str) -> str:
    """Return the Python lines that give the same: no table of the store holds a decoder."""
    return f"""import numpy as np
from safetensors.numpy import load_file

W_dec = load_file({str(weights_path(store, sae))!r})["W_dec"].astype(np.float64)
length = np.linalg.norm(W_dec, axis=1, keepdims=True)
unit = W_dec / np.where(length > 0, length, 1)
cosine = unit @ unit[{feature}]
nearest = np.lexsort((np.arange(len(cosine)), -cosine))
nearest = nearest[nearest != {feature}][:{top}]
print(np.stack([nearest, cosine[nearest]], axis=1))"""


def _cosines(store: Store, sae: str, feature: int, n_latents: int) -> npt.NDArray[np.float64]:
    from safetensors import SafetensorError, safe_open

    path = weights_path(store, sae)
    try:
        with safe_open(path, framework="np") as weights:
            rows = weights.get_slice("W_dec")
            mine = _unit(rows[feature : feature + 1])[0]
            parts = [
                _unit(rows[first : min(first + _ROWS_AT_ONCE, n_latents)]) @ mine
                for first in range(0, n_latents, _ROWS_AT_ONCE)
            ]
    except (SafetensorError, OSError) as error:
        raise SAEError(
            f"{path} cannot be read as weights ({error}): run 'featurestore verify {store.root}'."
        ) from error
    return np.concatenate(parts)


def _unit(rows: npt.NDArray) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length > 0, length, 1)
