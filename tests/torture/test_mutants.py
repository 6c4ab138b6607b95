import os
import random
import signal

from tests.torture import mutants, races

ALWAYS = {"open", "read", "verify"}
SOMETIMES = {"connect", "card"}
"""both or neither"""
OF_A_KIND = {
    "activations": {"activations"},
    "saes": {"load_config", "store_sae"},
    "samples": {"families", "labels"},
}
BESIDE = {"selection": "Selection.load", "prompts": "read_prompts", "bundle": "unpack"}
LONGER = {
    "sql", "scan", "info", "pack", "push", "duckdb", "score", "query", "export", "export -o", "encode", "repair --dry-run",
    "repair", "write_card", "compact", "sql where", "append", "remove",
}  # fmt: skip


def expected(what):
    """What every mutant of this description must have gone through, beside one of ``LONGER``."""
    kind, _, name = what.partition(" ")
    if kind.partition(".")[0] in BESIDE:
        return {BESIDE[kind.partition(".")[0]]}
    parts = name.removeprefix("manifest/").split("/")
    if len(parts) == 1 or parts[0] == "store.json":  # no shard's file: taken as one of samples
        parts = ["samples"]
    return ALWAYS | OF_A_KIND.get(parts[0], set())


def test_a_store_that_was_changed_and_sealed_again_is_refused_or_read_as_what_it_says(tmp_path):
    report = mutants.mutate(tmp_path, 60)
    assert report.wrong == []
    assert report.mutants == 60 and report.refused > 60
    for what, ways in report.tried:
        own = expected(what.partition(" ")[2])
        others = set(ways) - own - SOMETIMES
        assert own <= set(ways) and set(ways) & SOMETIMES in (set(), SOMETIMES), (what, ways)
        assert len(others) == len(own & ALWAYS) / 3 and others <= LONGER, (what, ways)
    kinds = {what.split(" ")[1].partition(".")[0] for what, _ in report.tried}
    assert {"record", "parquet"} <= kinds and kinds & set(BESIDE)


def test_a_mutant_that_ends_the_process_is_counted_and_the_others_go_on(tmp_path, monkeypatch):
    third = random.Random(3).random()

    def change(chamber, rng):
        dies = rng.random() == third
        return "record x", {"open": lambda: dies and os.kill(os.getpid(), signal.SIGKILL)}

    monkeypatch.setattr(mutants, "change", change)
    report = mutants.mutate(tmp_path, 6)
    assert report.died == ["3 record x: open ended the process with status -9"]
    assert report.wrong == report.died
    assert sorted(report.tried) == [(f"{seed} record x", ("open",)) for seed in range(6)]


def test_every_pair_of_writers_leaves_what_is_committed_as_it_is(tmp_path):
    outcome = races.race(tmp_path, rounds=1)
    assert outcome.tried == 55 and outcome.broken == []
