"""Stores together with what an oracle needs to answer every question about them."""

import math

import pytest

from queries import ask
from queries.questions import questions
from tests.builders.codes import importance, random_codes
from tests.builders.stores import make_store
from tests.queries import oracles


def make_case(root, seed, labels, silent, feature, top):
    """Two stores and an oracle's case: the first store has two SAEs, the second the other codes
    under the first SAE's name."""
    z, other_z = (
        random_codes(seed, samples=len(labels)),
        random_codes(seed + 1, samples=len(labels)),
    )
    if silent is not None:
        z[silent % len(labels)] = 0
    families = {"style": labels, "total": ["cat", None, *["it's"] * (len(labels) - 2)]}
    store = make_store(root / "store", z, families, size=(2, 2))
    make_store(root / "store", other_z, families, sae="t", size=(2, 2))
    other = make_store(root / "other", other_z, families, size=(2, 2))
    ids = list(store.records("samples")[0].sample_ids)
    concepts = sorted({label for label in labels if label is not None})
    rows = importance(store, "s", "style").to_pylist()
    named = [
        concept for concept in concepts if concept in {row["concept"] for row in rows}
    ] or concepts
    case = oracles.Case(z, ids, families, other_z, feature, named[0], named[-1], top, rows)
    return store, other, case


def parameters(name, case):
    values = {"sae": "s", "other_sae": "t", "family": "style", "replicates": 20}
    values |= {
        "feature": case.feature,
        "concept": case.concept,
        "other_concept": case.other_concept,
        "top": case.top,
    }
    values |= {
        "sample": case.ids[case.sample],
        "step": 1,
        "bands": 2,
        "features": f"{case.feature},1",
    }
    return {key: value for key, value in values.items() if key in questions()[name].parameters}


def answer(name, store, other, case):
    second = other if "other_stats" in questions()[name].relations else None
    return ask(store, name, parameters(name, case), other=second)


def equal(found, expected):
    """Two rows are equal but for rounding, also of what a small number is the difference of."""
    largest = max(
        (abs(b) for b in expected if isinstance(b, float) and abs(b) < math.inf), default=0
    )
    return all(
        a == b
        if isinstance(b, (str, int)) or b is None or a is None
        else a == pytest.approx(b, abs=1e-9 + 1e-12 * largest, rel=1e-6)
        for a, b in zip(found, expected, strict=True)
    )
