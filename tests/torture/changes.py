"""What is changed in a store, or beside it, and made right again as far as its checksums go."""

import contextlib
import hashlib
import io
import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from featurestore import Selection
from featurestore.format.contents import cuts
from featurestore.format.footers import MALFORMED
from featurestore.format.parquet.structure import check_structure
from featurestore.format.schemas import schema_id
from featurestore.maintenance.repair import shard_of
from featurestore.prompts import read_prompts
from featurestore.sharing.bundle import LIST, unpack
from tests.builders.bundles import write_bundle
from tests.torture.chamber import Chamber
from tests.torture.mutate import (
    hostile_value,
    json_bytes,
    mutate_bytes,
    mutate_json,
    mutate_safetensors,
    mutate_text,
    seal,
)
from tests.torture.mutate_parquet import mutate_footer, mutate_pages, mutate_table
from tests.torture.ways import Ways, ways_of

KINDS = {"record": 4, "parquet": 5, "mark": 1, "ledger": 1, "config": 1, "weights": 1, "link": 1, "selection": 1, "bundle": 1,
          "prompts": 1}  # fmt: skip
"""what is changed → how often, relative to the others"""


def change(chamber: Chamber, rng: random.Random) -> tuple[str, Ways]:
    """Change one thing in the chamber, or beside it; return what it was, and the ways that are to
    be tried."""
    kind = rng.choice([kind for kind, times in KINDS.items() for _ in range(times)])
    if kind in ("selection", "bundle", "prompts"):
        return _beside(chamber, kind, rng)
    names = sorted(chamber.whole)
    chosen = {
        "record": [n for n in names if n.startswith("manifest/") and n.count("/") > 1],
        "parquet": [n for n in names if n.endswith(".parquet")],
        "mark": ["manifest/store.json"], "ledger": ["manifest/SHA256SUMS", "README.md"],
        "config": ["saes/s/config.json"], "weights": ["saes/s/sae.safetensors"],
        "link": [n for n in names if "/" in n],
    }[kind]  # fmt: skip
    name = rng.choice(chosen)
    path, data, home = chamber.root / name, chamber.whole[name], str(chamber.home.path)
    if kind in ("record", "mark"):
        path.write_bytes(_sealed(data, rng, home))
        if kind == "record" and rng.random() < 0.1:
            shutil.move(
                path,
                path.with_name(
                    rng.choice(["copy.json", "00000000-0123456789abcdef.json", "a b.json"])
                ),
            )
    elif kind == "ledger":
        path.write_bytes(mutate_text(data, rng, home))
    elif kind == "link":
        path.unlink()
        path.symlink_to(
            rng.choice(
                [
                    chamber.home.path / "x.parquet",
                    chamber.home.path,
                    path,
                    Path("../../home/id_rsa"),
                ]
            )
        )
    else:
        if kind == "parquet":
            how = rng.choice(
                [mutate_footer, mutate_footer, mutate_pages, mutate_pages, mutate_table,
                 mutate_table, mutate_bytes]
            )  # fmt: skip
            new = how(data, rng, home) if how is mutate_table else how(data, rng)  # type: ignore[operator]
        elif kind == "config":
            new = json_bytes(mutate_json(json.loads(data), rng, home))
        else:
            new = mutate_safetensors(data, rng, home)
        path.write_bytes(new)
        _reseal(chamber.root, name, new, rng)
    return f"{kind} {name}", ways_of(chamber, name, rng)


def _sealed(data: bytes, rng: random.Random, home: str) -> bytes:
    body = json.loads(data)
    del body["sha256"]
    return mutate_bytes(data, rng) if rng.random() < 0.1 else seal(mutate_json(body, rng, home))


def _reseal(root: Path, name: str, data: bytes, rng: random.Random) -> None:
    """Make the record of a file say what the file is now; rows and schema too, more often than
    not."""
    shard = shard_of(name)
    assert shard is not None
    location = root / "manifest" / shard[0] / f"{shard[1]}.json"
    body = json.loads(location.read_bytes())
    del body["sha256"]
    for entry in body["files"]:
        if entry["path"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if name.endswith(".parquet"):
        # Behind the gate, as everything: pyarrow ends the process over some footers.
        sound = False
        with contextlib.suppress(*MALFORMED):
            check_structure(root / name)
            sound = True
        with (
            contextlib.suppress(Exception),
            pq.ParquetFile(io.BytesIO(data if sound else b"")) as file,
        ):
            if rng.random() < 0.7:
                body |= {"rows": file.metadata.num_rows, "schema": schema_id(file.schema_arrow)}
        if body.get("contents"):
            body["contents"]["parts"] = _parts(data if sound else b"", data, body["rows"])
    location.write_bytes(seal(body))


def _parts(readable: bytes, data: bytes, rows: int) -> list[dict[str, Any]]:
    """Return the parts of a file as its footer tells them; all in one where it cannot be read."""
    groups, ends = [rows], [max(1, len(data) - 8)]
    with contextlib.suppress(Exception), pq.ParquetFile(io.BytesIO(readable)) as file:
        told = list(cuts(file.metadata))
        groups, ends = [cut.rows for cut in told], [cut.end for cut in told]
    bounds = [0, *ends, len(data)]
    return [
        {"rows": n, "bytes": end - begin, "sha256": hashlib.sha256(data[begin:end]).hexdigest()}
        for n, (begin, end) in zip([*groups, 0], pairwise(bounds), strict=True)
    ]


def _beside(chamber: Chamber, kind: str, rng: random.Random) -> tuple[str, Ways]:
    home, out = str(chamber.home.path), chamber.work / "out"
    if kind == "selection":
        suffix = rng.choice(sorted(chamber.selections))
        path, data = chamber.work / f"out{suffix}", chamber.selections[suffix]
        binary = suffix in (".parquet", ".jsonl.zst")
        if suffix == ".json":
            path.write_bytes(json_bytes(mutate_json(json.loads(data), rng, home)))
        elif suffix == ".parquet":
            path.write_bytes(rng.choice([mutate_footer, mutate_bytes])(data, rng))
        else:
            path.write_bytes(mutate_bytes(data, rng) if binary else mutate_text(data, rng, home))
        return f"selection{suffix}", {"Selection.load": lambda: Selection.load(path).at(500.0)}
    if kind == "prompts":
        path = chamber.work / f"out.{rng.choice(['jsonl', 'csv', 'json', 'txt', 'tsv'])}"
        path.write_bytes(mutate_text(chamber.prompts, rng, home))
        return f"prompts{path.suffix}", {"read_prompts": lambda: read_prompts(str(path), [0])}
    bundle = chamber.work / "out.tar.zst"
    files = {name: data for name, data in chamber.whole.items() if not name.startswith(".")}
    listed: Any = [
        {"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in files.items()
    ]
    head = {"format": "featurestore-bundle", "format_version": 1, "files": listed}
    action = rng.randrange(4)
    if action == 0:
        name = rng.choice(sorted(files))
        files[name] = mutate_bytes(files[name], rng)
    elif action == 1:
        value = hostile_value(rng, home)
        files[str(value).replace("\x00", "0").encode("utf-8", "replace").decode()[:90] or "x"] = (
            b"x"
        )
    write_bundle(
        bundle, {LIST: json_bytes(mutate_json(head, rng, home) if action != 0 else head), **files}
    )
    if action == 3:
        bundle.write_bytes(mutate_bytes(bundle.read_bytes(), rng))
    return "bundle", {"unpack": lambda: unpack(bundle, out).arrow("samples")}
