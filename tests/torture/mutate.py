"""Changed files whose checksums hold: structured mutation of everything that lies in a store
(seeded, so repeatable)."""

import copy
import hashlib
import json
import random
from typing import Any

from featurestore.format.canonical import sealed

NUMBERS = [
    0,
    -1,
    1,
    2,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    2**70,
    -(2**63),
    1.5,
    -0.0,
    1e308,
    1e38,
    True,
    False,
]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 5000,
    '"\\ud800"',
    '{"a":1,"a":2}',
    "[" * 3000 + "]" * 3000,
    "tru",
    "\x00",
]
_MARKER = "⟦raw⟧"


def hostile_paths(home: str) -> list[str]:
    """Return names that lead somewhere else, ``home`` among them."""
    return ["../home/x.parquet", "../../home/id_rsa", f"{home}/x.parquet", f"{home}/id_rsa", "/etc/passwd", ".", "..", "",
            "a/../b", "samples/../../home/x.parquet", "x\x00y", "x\ny", "~/id_rsa", "a" * 300, "\u202e", "CON", "-rf", "file:///etc/passwd",
            "s3://bucket/x", "*", "samples/*.parquet", "%2e%2e/x"]  # fmt: skip


def hostile_value(rng: random.Random, home: str) -> Any:
    """Return a value that stands where nobody expects it."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(hostile_paths(home))
    if kind == 2:
        return rng.choice(
            [None, [], {}, [[]], [{}], {"": None}, [1] * 1000, {"a": {"b": {"c": 1}}}]
        )
    if kind == 3:
        return _MARKER + str(rng.randrange(len(RAW)))
    return rng.choice(
        ["cond", "saes", "samples", "featurestore", "0" * 64, "0" * 16, "x", "é", "1", "true"]
    )


def mutate_json(body: Any, rng: random.Random, home: str) -> Any:
    """Return a copy of a JSON value with one to three things in it changed, dropped, doubled or
    renamed."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        holder, key = _place(body, rng)
        if holder is None:
            return hostile_value(rng, home)
        action = rng.randrange(5)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "path", "files", "../x", "sha256 ", key + "2"])] = (
                holder.pop(key)
            )
        elif action == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == 3 and isinstance(holder, list):
            del holder[key]
        else:
            holder[key] = hostile_value(rng, home)
    return body


def _place(body: Any, rng: random.Random) -> tuple[Any, Any]:
    places: list[tuple[Any, Any]] = []
    level = [body]
    while level:
        one = level.pop()
        keys = (
            list(one)
            if isinstance(one, dict)
            else list(range(min(len(one), 50)))
            if isinstance(one, list)
            else []
        )
        places += [(one, key) for key in keys]
        level += [one[key] for key in keys]
    return rng.choice(places) if places else (None, None)


def json_bytes(body: Any) -> bytes:
    """Return JSON as this project writes it, with the raw texts of :data:`RAW` where they were
    put."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for number, raw in enumerate(RAW):
        text = text.replace(f'"{_MARKER}{number}"', raw)
    return text.encode("utf-8", "surrogatepass")


def seal(body: Any) -> bytes:
    """Return a sealed line whose checksum is right as far as it can be, whatever is in it."""
    if not isinstance(body, dict):
        return json_bytes(body) + b"\n"
    whole = json_bytes(body)
    if _MARKER not in json.dumps(body, ensure_ascii=False):
        try:
            return sealed(body)
        except (ValueError, TypeError, RecursionError):
            pass
    digest = hashlib.sha256(whole).hexdigest()
    return (
        whole[:-1] + (b"," if len(whole) > 2 else b"") + b'"sha256":"' + digest.encode() + b'"}\n'
    )


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a range zeroed, changed, doubled, cut out or cut off, or with text in
    front."""
    changed = bytearray(data)
    first = rng.randrange(len(data) + 1)
    last = min(len(data), first + rng.choice([1, 2, 8, 64, 4096]))
    action = rng.randrange(6)
    if action == 0:
        changed[first:last] = bytes(last - first)
    elif action == 1:
        changed[first:last] = rng.randbytes(last - first)
    elif action == 2:
        changed[first:first] = data[first:last]
    elif action == 3:
        del changed[first:last]
    elif action == 4:
        del changed[first:]
    else:
        changed[:0] = rng.choice(
            [b"\xef\xbb\xbf", b"\xff\xfe", b"\x80\x04K\x01.", b"PK\x03\x04", b"\n", b"\x00"]
        )
    return bytes(changed)


def mutate_safetensors(data: bytes, rng: random.Random, home: str) -> bytes:
    """Return a safetensors file with another header, or with changed bytes."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    header = json_bytes(mutate_json(json.loads(data[8 : 8 + size]), rng, home))
    length = len(header) if rng.random() < 0.8 else rng.choice([0, 2**32, 2**63, len(header) + 1])
    return length.to_bytes(8, "little") + header + data[8 + size :]


def mutate_text(data: bytes, rng: random.Random, home: str) -> bytes:
    """Return a text file with a line changed: cut, doubled, swapped, or with a hostile value in the
    place of another."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    action = rng.randrange(5)
    if action == 0:
        del lines[number]
    elif action == 1:
        lines.insert(number, lines[number])
    elif action == 2:
        other = rng.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    elif action == 3:
        value = hostile_value(rng, home)
        lines[number] = (
            json_bytes(value) if rng.random() < 0.5 else str(value).encode("utf-8", "surrogatepass")
        )
    else:
        return mutate_bytes(data, rng)
    return b"\n".join(lines)
