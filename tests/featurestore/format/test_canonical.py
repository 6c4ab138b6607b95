"""Sealed lines are as the format says, and what is read of them is looked at whole."""

import hashlib
import json

import pytest

from featurestore.format.canonical import canonical_json, sealed, unsealed
from featurestore.format.gate import MAX_DEPTH, MalformedError, parse_json


def naive(body):
    """docs/format.md, section 2, word by word."""

    def line(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    digest = hashlib.sha256(line(body).encode()).hexdigest()
    return f"{line({**body, 'sha256': digest})}\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        {}, {"a": 1}, {"z": [1.5, None, True]}, {"a": {"sha256": "x"}, "t": "ü\u2028"},
        {"sha255": 1, "sha2560": {"b": 1, "a": 2}, "sha25": "\"sha256\":\"", "SHA256": []},
    ],
)  # fmt: skip
def test_a_checksum_stands_where_its_key_is_sorted(body):
    assert sealed(body) == naive(body)
    assert unsealed(sealed(body)) == body
    assert unsealed(sealed(body).replace(b'"sha256":"', b'"sha256":"0', 1)) is None


def test_canonical_json_has_no_number_that_json_lacks():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json(value)


def test_depth_and_half_pairs_are_looked_for_however_few_brackets_there_are():
    deep = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_json(deep) == json.loads(deep)
    with pytest.raises(MalformedError, match="nested more than 32 deep"):
        parse_json(f"[{deep}]")
    with pytest.raises(MalformedError, match="half of a surrogate pair"):
        parse_json('{"a": "\\ud800"}')
    with pytest.raises(MalformedError, match="half of a surrogate pair"):
        parse_json('{"\\uD800": 1}')
