"""Canonical JSON and the hashes built on it (docs/format.md, sections 1.7 and 2)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from featurestore.format.gate import parse_json
from featurestore.vocabulary import TEXT_ENCODERS

_SEAL = "sha256"
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and unescaped UTF-8; NaN and infinity raise
    ValueError."""
    return _ENCODER.encode(value)


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(fields: Mapping[str, Any]) -> bytes:
    """Return the fields as one line of canonical JSON with their own checksum under ``sha256``."""
    # Keys are sorted, so the checksum stands between two parts of the text that it is of.
    before = canonical_json({key: fields[key] for key in fields if key < _SEAL})[1:-1]
    after = canonical_json({key: fields[key] for key in fields if key > _SEAL})[1:-1]
    digest = sha256_text(_object(before, after))
    return (_object(before, f'"{_SEAL}":"{digest}"', after) + "\n").encode()


def _object(*members: str) -> str:
    return "{" + ",".join(filter(None, members)) + "}"


def unsealed(data: bytes) -> dict[str, Any] | None:
    """Return the fields of a sealed line without their checksum; None if anything in it was
    changed.

    Raises:
        MalformedError: it is not JSON.
    """
    body = parse_json(data)
    if not isinstance(body, dict) or sealed(body) != data:
        return None
    del body[_SEAL]
    return body


def run_id(run: Mapping[str, Any]) -> str:
    """Return the 16 hexadecimal digits that name a run's settings; its text encoders do not
    count."""
    named = {key: value for key, value in run.items() if key != TEXT_ENCODERS}
    return sha256_text(canonical_json(named))[:16]


def sample_id(
    run: str,
    prompt: str,
    seed: int,
    guidance: float | None = None,
    *,
    starts: Mapping[str, str] | None = None,
) -> int:
    """Return a sample's 63-bit id: a function of the run id, the prompt, the seed, the guidance
    scale where the sample has another than its run, the hashes of the pictures of its own that it
    starts from (``image``, ``mask``, ``control`` → SHA-256), and of nothing else."""
    own = "" if guidance is None else f" {guidance!r}"
    own += "".join(f" {key}" for key in start_keys(starts or {}))
    digest = hashlib.sha256(f"{run}\n{seed}{own}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def start_keys(starts: Mapping[str, str]) -> list[str]:
    """Return what stands for pictures that a sample starts from, ``kind:hash``, in the order of the
    kinds' names."""
    return [f"{kind}:{digest}" for kind, digest in sorted(starts.items())]


def shard_name(first_index: int, sample_ids: Iterable[int]) -> str:
    """Return the name of the shard that holds these samples, the first of which stands at
    ``first_index`` of its plan."""
    digest = sha256_text("".join(f"{i}\n" for i in sample_ids))
    return f"{first_index:08d}-{digest[:16]}"


def same_model(one: str, other: str) -> bool:
    """Say whether two model hashes are of the same weights: they share a part other than the signs
    (docs/format.md, 1.8)."""
    return any(not part.startswith("sign:") for part in set(one.split(",")) & set(other.split(",")))


def same_signs(one: str, other: str) -> bool:
    """Say whether two model hashes are of one model in two precisions: they have the signs in
    common, and no precision in which their weights could be compared."""
    mine, yours = (set(text.split(",")) for text in (one, other))
    kinds, others = ({part.partition(":")[0] for part in parts} for parts in (mine, yours))
    return any(part.startswith("sign:") for part in mine & yours) and kinds & others == {"sign"}
