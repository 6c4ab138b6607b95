"""What the basket of an exported page needs: selection files, and ladders that were drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from featurestore.explorer.basket.elsewhere import file_texts
from featurestore.explorer.basket.entries import Entry, selection
from featurestore.explorer.basket.ladders import Ladders
from featurestore.explorer.export.files import write_json
from featurestore.format import durable
from featurestore.store import Store

TOPS = (1, 2, 3)
"""of these many best features of each step there is a selection file"""


def write_selections(
    store: Store, out: Path, sae: str, branch: str, *, families: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write the selection files of an SAE's concepts; return where each is, by its entry in a
    basket."""
    from queries.selections import file_name

    index: dict[str, Any] = {}
    for family in families:
        for number, concept in enumerate(family["concepts"]):
            for top in TOPS:
                entry = Entry(sae, family["name"], concept["name"], branch, top, ())
                chosen = selection(store, entry)
                [(_, text)] = file_texts([chosen], ["selection.json"])
                place = f"selections/{sae}-{family['name']}-{number}-{top}.json"
                durable.write_bytes(out / "data" / place, text.encode())
                index["\n".join((sae, family["name"], concept["name"], branch, str(top)))] = {
                    "file": place,
                    "name": file_name(chosen),
                    "rows": chosen.rows.num_rows,
                }
    return index


def write_ladders(store: Store, out: Path) -> int:
    """Write the ladders that were drawn from a store, newest first; return how many.

    Raises:
        UsageError: none was drawn.
    """
    every = Ladders(store.root).every()
    if not every:
        raise UsageError(
            f"--ladder: nothing was drawn from {store.root} yet. Draw in the basket of "
            f"'featurestore explore {store.root}' first."
        )
    for about, place in every:
        for picture in about["pictures"]:
            name = f"{picture['key']}.png"
            durable.write_bytes(out / "data/drawn" / name, (place / name).read_bytes())
    write_json(out / "data/ladders.json", [about for about, _ in every])
    return len(every)
