"""Issue 19, item 6: scores of what fires where a word looks, against NumPy from dense codes."""

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Store
from featurestore.errors import SAEError, TableError
from featurestore.format.canonical import sample_id, shard_name
from featurestore.format.schemas import attention_schema
from featurestore.maintenance.compact import compact
from featurestore.maintenance.verify import verify
from featurestore.saes import sae_hash
from featurestore.selection import Selection
from sae.checkpoint import weights_bytes
from sae.encoding import encode
from sae.masking import encode_where
from tests.builders.cli import run as shell
from tests.builders.codes import dense, importance, random_codes
from tests.builders.saes import random_sae
from tests.builders.stores import HOOK, make_store, timestep
from tests.builders.trees import same_tree
from tests.queries.oracles import oracle

PROMPTS = ["a cat", "a dog", "cat and dog", "a dog", "a bird", "cat, cat"]
STYLE = ["neon", "neon", "plain", "plain", "neon", "neon"]
HAVING = [0, 1, 2, 3, 5]
STEPS, POSITIONS, LATENTS = 3, 6, 12
WEIGHTS = weights_bytes(random_sae(8, LATENTS))


def codes(seed=0):
    return random_codes(seed, len(PROMPTS), STEPS, POSITIONS, LATENTS)


def attend(root, words=("cat", "dog", "fish"), steps=range(STEPS), positions=POSITIONS, cuts=2):
    """Keep random maps of words; returns them as ``[sample, step, word, positions]``."""
    maps = np.random.default_rng(4).random((len(PROMPTS), STEPS, len(words), positions))
    maps = maps.astype(np.float16)
    store = Store.open(root)
    ids = [sample_id(store.run_id, text + str(i), 0) for i, text in enumerate(PROMPTS)]
    about = {"hook": HOOK, "height": "1", "width": str(positions)}
    schema = attention_schema(positions).with_metadata(
        {f"featurestore.{key}": value for key, value in about.items()}
    )
    for part in np.array_split(np.arange(len(PROMPTS)), cuts):
        rows = [(i, s, w) for i in part.tolist() for s in steps for w in range(len(words)) if words[w] in PROMPTS[i]]  # fmt: skip
        columns = [
            pa.array([ids[i] for i, _, _ in rows]),
            pa.array([s for _, s, _ in rows], pa.int32()),
            pa.array([timestep(s) for _, s, _ in rows], pa.float32()),
            pa.array(["cond"] * len(rows)),
            pa.array([words[w] for _, _, w in rows]),
        ]
        flat = np.array([maps[row] for row in rows]).reshape(-1)
        kind = schema.field("attention").type
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), type=kind))
        own = [ids[i] for i in part]
        table = pa.Table.from_arrays(columns, schema=schema)
        store.append(
            f"attention/{HOOK}", shard_name(int(part[0]), own), table, own, made_by={"words": list(words)}
        )  # fmt: skip
    return maps.astype(np.float32)


def build(root, z, first=3, **kwargs):
    """A store of which the ``first`` of three shards are encoded."""
    prompts = [text + str(i) for i, text in enumerate(PROMPTS)]
    for part in np.array_split(np.arange(len(z)), 3)[:first]:
        store = make_store(
            root, z, {"style": STYLE}, encoded=part.tolist(), prompts=prompts, weights=WEIGHTS, **kwargs
        )  # fmt: skip
    return store


def masked(z, maps, words):
    """What is left of dense codes where a word of the prompt looks."""
    inside = np.zeros(z.shape[:3], bool)
    for i, prompt in enumerate(PROMPTS):
        for w, word in enumerate(("cat", "dog", "fish")):
            if word in words and word in prompt:
                one = maps[i, :, w]
                inside[i] |= one >= 0.4 * one.max(1, keepdims=True)
    return z * inside[..., None], inside


@pytest.mark.parametrize(("words", "having"), [(["cat", "dog"], HAVING), (["cat"], [0, 2, 5])])
def test_scores_are_of_the_positions_where_a_word_looks(words, having, tmp_path):
    z = codes()
    store, maps = build(tmp_path / "s", z, uncond=codes(1)), attend(tmp_path / "s")
    assert encode_where(store, "s", words[::-1], "at", progress=False) == 3
    left, inside = masked(z, maps, words)
    assert 0.3 < inside[having].mean() < 0.95
    labels = [STYLE[i] for i in having]
    scores, means, others, mean_all = oracle(left[having], labels)
    found = importance(store, "at", "style")
    for concept in ("neon", "plain"):
        for column, expected in (("score", scores[concept]), ("mean_concept", means[concept]),
                                 ("mean_other", others[concept]), ("mean_all", mean_all)):  # fmt: skip
            actual = dense(found, concept, STEPS, LATENTS, column)
            fired = dense(found, concept, STEPS, LATENTS, "mean_all") > 0
            np.testing.assert_allclose(actual, np.where(fired, expected, 0), atol=1e-7)
    other, _ = masked(codes(1), maps, words)  # the other branch, by the same maps
    scores = oracle(other[having], labels)[0]
    found = importance(store, "at", "style", "uncond")
    np.testing.assert_allclose(dense(found, "neon", STEPS, LATENTS), scores["neon"], atol=1e-7)
    ids = [sample_id(store.run_id, text + str(i), 0) for i, text in enumerate(PROMPTS)]
    rows = store.arrow("codes/at").to_pylist()
    assert {row["sample_id"] for row in rows} == {ids[i] for i in having}
    for row in rows:
        if row["branch"] == "cond":
            one = left[ids.index(row["sample_id"]), row["step"]]
            assert row["features"] == [np.flatnonzero(position).tolist() for position in one]
    assert verify(store, deep=True) == []
    record = store.record("saes", "at")
    assert record.made_by["mask_from"] == sorted(words) and record.made_by["masked"] == "s"


def test_it_is_resumed_and_new_samples_are_added(tmp_path, monkeypatch):
    z = codes()
    store = build(tmp_path / "whole", z, first=1)
    attend(tmp_path / "whole")
    assert encode_where(store, "s", ["cat", "dog"], "at", progress=False) == 1
    build(tmp_path / "whole", z)
    assert encode_where(store, "s", ["cat", "dog"], "at", progress=False) == 2
    again = build(tmp_path / "s", z)
    attend(tmp_path / "s")
    append, calls = Store.append, []

    def interrupted(self, table, *args, **kwargs):
        calls.append(table)
        if len(calls) == 4:  # after the codes of the second shard
            raise KeyboardInterrupt
        return append(self, table, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "append", interrupted)
        encode_where(again, "s", ["cat", "dog"], "at", progress=False)
    assert encode_where(again, "s", ["dog", "cat"], "at", progress=False) == 2
    assert encode_where(again, "s", ["dog", "cat"], "at", progress=False) == 0
    same_tree(store.root, again.root)
    compact(again)
    assert encode_where(again, "s", ["dog", "cat"], "at", progress=False) == 0
    assert importance(again, "at", "style") == importance(store, "at", "style")


def test_what_cannot_be_masked_is_one_line(tmp_path):
    store = build(tmp_path / "s", codes())

    def wrong(error, message, words=("cat",), name="at", of="s"):
        with pytest.raises(error, match=message) as raised:
            encode_where(store, of, list(words), name, progress=False)
        assert "\n" not in str(raised.value) and store.record("saes", "at") is None

    wrong(
        SAEError, f"does not know where words look at '{HOOK}': collect it with --attention cat.$"
    )
    attend(tmp_path / "s", cuts=1)
    wrong(
        SAEError, "has the words cat, dog, fish, not bird: collect another store", ["bird", "cat"]
    )
    wrong(SAEError, r"^no prompt that SAE 's' encoded has the word fish.$", ["fish"])
    wrong(SAEError, r"has another SAE 's': give this one another --name.$", name="s")
    wrong(TableError, "^--name 'a b' cannot be a name", name="a b")
    wrong(SAEError, "has no SAE 'x'", of="x")
    encode_where(store, "s", ["cat"], "at", progress=False)
    whole = r"^SAE 'at' is 's' where words look: encode with 's', then 'featurestore encode --sae s --mask-from cat --name at'.$"
    with pytest.raises(SAEError, match=whole):
        encode(store, "at", progress=False)
    with pytest.raises(SAEError, match=r"has another SAE 'at'"):
        encode_where(store, "s", ["dog"], "at", progress=False)
    with pytest.raises(SAEError, match=r"has codes of a part of the positions: name the whole one"):
        encode_where(store, "at", ["dog"], "other", progress=False)


@pytest.mark.parametrize(("given", "of"), [({"positions": 4}, "of 4 positions"), ({"steps": [0, 1]}, "of no position")])  # fmt: skip
def test_maps_of_other_positions_or_steps_are_refused(given, of, tmp_path):
    store = build(tmp_path / "s", codes())
    attend(tmp_path / "s", **given)
    with pytest.raises(SAEError, match=f"has codes of 6 positions at step . and a map {of}: collect both"):  # fmt: skip
        encode_where(store, "s", ["cat"], "at", progress=False)


def test_the_command_line_scores_and_exports_them(tmp_path, capsys):
    z = codes()
    store, maps = build(tmp_path / "s", z), attend(tmp_path / "s")
    command = ["encode", "--store", store.root, "--sae", "s", "--quiet"]
    status, _, err = shell(capsys, *command, "--mask-from", "cat")
    assert (status, err) == (1, "Error: --mask-from and --name belong together: give both.\n")
    status, out, err = shell(capsys, *command, "--mask-from", "cat", "--name", "at")
    assert (status, err) == (0, "") and "codes/at: 9 rows" in out
    path = tmp_path / "neon.json"
    status, _, err = shell(
        capsys, "export", store.root, "--sae", "at", "--concept", "style=neon", "--top", 2, "-o", path
    )  # fmt: skip
    note = (
        "Note: 'at' has codes of 3 of 6 samples, those whose prompt has cat; the answer is about "
        "these alone.\n"
    )
    assert (status, err) == (0, note)
    chosen, (left, _) = Selection.load(path), masked(z, maps, ["cat"])
    scores = oracle(left[[0, 2, 5]], ["neon", "plain", "neon"])[0]["neon"]
    expected = [
        (step, f)
        for step in range(STEPS)
        for f in np.argsort(-scores[step], kind="stable")[:2].tolist()
        if scores[step, f] > 0
    ]
    assert [(row["step"], row["feature"]) for row in chosen.rows.to_pylist()] == expected
    assert chosen.sae == "at" and chosen.sae_hash == sae_hash(store.record("saes", "s"))
