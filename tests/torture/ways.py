"""The readers and writers that a changed store goes through."""

import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import huggingface_hub

from featurestore import Store
from featurestore.card import make_card, write_card
from featurestore.maintenance.compact import compact
from featurestore.maintenance.repair import repair, shard_of
from featurestore.maintenance.verify import verify
from featurestore.saes import load_config
from featurestore.sharing.bundle import pack
from featurestore.sharing.hub import push
from queries.connection.database import export_database
from queries.connection.session import connect
from queries.connection.statement import sql
from sae.checkpoint import store_sae
from tests.builders.stores import HOOK
from tests.torture.chamber import Chamber, command

Ways = dict[str, Callable[[], object]]


class _Listener:
    def create_repo(self, repo: str, **_: object) -> str:
        return repo

    def upload_folder(self, **_: object) -> None:
        """Take everything."""


def _push(root: Path) -> None:
    with mock.patch.object(huggingface_hub, "HfApi", _Listener):
        push(Store.open(root), "user/name")


def ways_of(chamber: Chamber, name: str, rng: random.Random) -> Ways:
    """Return the ways through which a file of the store is read, and one of those that take longer,
    or write."""
    root, work = chamber.root, chamber.work
    table = (shard_of(name) or ("samples", ""))[0]
    kind = table.partition("/")[0]
    at = ("--store", root, "--sae", "s")
    always: Ways = {
        "open": lambda: [Store.open(root).records(t) for t in [*Store.open(root).tables(), "saes"]],
        "read": lambda: Store.open(root).arrow(table),
        "verify": lambda: verify(Store.open(root), deep=True),
    }
    if rng.random() < 0.5:
        always["connect"] = lambda: connect(Store.open(root)).close()
        always["card"] = lambda: make_card(Store.open(root))
    if kind in ("activations",):
        always["activations"] = lambda: [
            shard.rows() for shard in Store.open(root).activations(HOOK)
        ]
    if kind == "saes" or name.startswith("saes/"):
        always |= {
            "load_config": lambda: load_config(Store.open(root), "s"),
            "store_sae": lambda: store_sae(Store.open(root), "s"),
        }
    if kind in ("samples", "labels"):
        always |= {
            "families": lambda: Store.open(root).families(),
            "labels": lambda: Store.open(root).corrected_labels(),
        }
    some: Ways = {
        "sql": lambda: sql(
            Store.open(root), f"select * from {kind if kind != 'saes' else 'codes'}"
        ),
        "sql where": lambda: sql(
            Store.open(root), "select * from labelled_stats where step < 1 and style = 'a'"
        ),
        "compact": lambda: compact(Store.open(root)),
        "scan": lambda: Store.open(root).scan(table),
        "info": lambda: command("info", root),
        "pack": lambda: pack(Store.open(root), work / "out.pack"),
        "push": lambda: _push(root),
        "duckdb": lambda: export_database(Store.open(root), work / "out.duckdb"),
        "score": lambda: command("score", root, "--sae", "s", "--by", "style"),
        "query": lambda: command("query", root, "feature_card", "-p", "sae=s", "-p", "feature=3"),
        "export": lambda: command("export", root, "--sae", "s", "--by", "style"),
        "export -o": lambda: command(
            "export", root, "--sae", "s", "--by", "style", "-o", work / "out.selections"
        ),
        "encode": lambda: command("encode", *at, "--quiet"),
        "repair --dry-run": lambda: repair(root, dry_run=True),
        "repair": lambda: repair(root),
        "write_card": lambda: write_card(Store.open(root)),
        "append": lambda: [
            Store.open(root).commit(record) for record in Store.open(root).records(table)
        ],
        "remove": lambda: [
            Store.open(root).remove(record) for record in Store.open(root).records("scores/s")
        ],
    }
    weights = [1 if key == "encode" else 4 for key in some]
    (chosen,) = rng.choices(list(some), weights)
    return always | {chosen: some[chosen]}
