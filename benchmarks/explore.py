"""The explorer's bars: how soon each view of a store is there, cold and warm, and what the server
takes.

python benchmarks/explore.py             the demo's store, demo/store
python benchmarks/explore.py STORE       another one

The first pass of a fresh server, of which no answer is kept, is cold; the second, in a new window
of the browser, is warm; the third is the first of a server that was started again. What the pages
need is made first, as `featurestore encode` makes it, and the files are verified. The numbers that
a view shows are compared with the question's.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

# What made Concepts and Concept soon there, at the published size: seconds of the processors for an
# answer, files verified before, beside other work; before, and from what is kept of candidates. The
# answers are the same bits.
#   best_scores, 50 styles     2.0   0.16   (20 objects: 1.2, 0.15)
#   overlap_matrix, 50 styles  2.4   0.13   (20 objects: 1.7, 0.12)
#   concept_scores, one style  0.78  0.11
# It was expected that Concepts would fall by their sum, 4 s of two processors, to 2.4 of the clock
# or less: it went from 4.5 to 0.7, as what looked every half second now does so every 5 ms. What is
# kept takes 0.7 MB for the styles and 0.3 MB for the objects; making it took 13.9 s, and 1.1 GB at
# most. Kept whole, candidates of 20 objects were 7.1 million rows, as their bounds are wide: so
# what is best of them is kept.
# Statistics compared with their records, 1 GB: 1.51 s; SHA-256 is 0.59 of it, and 0.55 were page
# headers, which took half as long by a pattern; an answer's text kept beside the answer: Concepts
# again 0.42 s of the clock before, 0.27 now.

from record import record

from featurestore import Store
from queries import ask
from queries.derived.keep import keep_derived
from tests.builders.browser import Visit, chromium

COMPLETE = """() => new Promise((done) => {
  const look = () => document.querySelector("main .waiting, main [aria-busy=true]")
    ? setTimeout(look, 5) : done();
  look();
})"""
"""Playwright's own waiting looks every half second after the first."""


def start(root: Path) -> tuple[subprocess.Popen, str, float]:
    """Start the command; return its process, the address that it prints, and the seconds until the
    page answers."""
    command = [sys.executable, "-m", "featurestore", "explore", str(root), "--no-browser"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = ""
    while "token=" not in address:
        address = process.stdout.readline().strip()
    import urllib.request

    while True:
        try:
            urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address).read()
            return process, address, time.perf_counter() - began
        except ConnectionError:
            time.sleep(0.01)
        except OSError:
            time.sleep(0.01)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[subprocess.Popen, str, float]]:
    """Have what :func:`start` returns, for the time of the block."""
    process, address, opening = start(root)
    try:
        yield process, address, opening
    finally:
        process.terminate()
        process.wait(30)


def memory_mb(process: subprocess.Popen) -> float:
    """Return the largest resident memory that the process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def addresses(store: Store) -> dict[str, str]:
    """Return an address of each view, of a feature that the first concept of the first family
    has."""
    [family, *_] = store.families()
    sae = store.names("codes")[0]
    concepts = [
        row for row in ask(store, "concepts", {"sae": sae}).to_pylist() if row["family"] == family
    ]
    concept = concepts[0]["concept"]
    found = ask(
        store, "concept_scores", {"sae": sae, "family": family, "concept": concept, "top": 1}
    ).to_pylist()
    sample, feature = store.records("samples")[0].sample_ids[0], found[0]["feature"]
    return {
        "store": f"#/store?sae={sae}",
        "concepts": f"#/concepts?sae={sae}&family={family}",
        "concept": f"#/concept/{family}/{concept}?sae={sae}",
        "features": f"#/features?sae={sae}",
        "feature": f"#/feature/{feature}?sae={sae}",
        "sample": f"#/samples/{sample}?sae={sae}",
        "sql": "#/sql?q=select+count(*)+as+n+from+stats",
    }


def walk(
    browser: Any, base: str, address: str, views: dict[str, str]
) -> dict[str, tuple[float, float]]:
    """Return for each view the seconds until it is painted, and until nothing of it is being
    computed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    visit = Visit(context, base)
    visit.page.goto(address)
    visit.settled()
    seconds = {}
    for name, target in views.items():
        visit.page.evaluate("() => { location.hash = '#/nowhere'; }")
        visit.page.get_by_text("There is no view").wait_for()
        began = time.perf_counter()
        visit.page.evaluate("address => { location.hash = address; }", target)
        visit.page.get_by_text("There is no view").wait_for(state="detached")
        painted = time.perf_counter() - began
        visit.page.evaluate(COMPLETE)
        seconds[name] = (painted, time.perf_counter() - began)
    assert not visit.problems, visit.problems
    context.close()
    return seconds


def check(browser: Any, address: str, base: str, *, store: Store, views: dict[str, str]) -> None:
    """Compare what the page shows of the features with the question's answer."""
    context = browser.new_context()
    visit = Visit(context, base)
    visit.page.goto(address)
    visit.settled()
    page = visit.go(views["features"])
    sae = re.search(r"sae=([^&]+)", views["features"])
    assert sae
    expected = ask(store, "dense_features", {"sae": sae[1], "threshold": 0})["feature"].to_pylist()[
        :10
    ]
    shown = (
        page.get_by_role("region", name="Features")
        .locator("tbody tr td:first-child")
        .all_inner_texts()[:10]
    )
    assert shown == [str(feature) for feature in expected]
    context.close()


def main(root: Path) -> None:
    """Measure a store's explorer and record it."""
    store = Store.open(root)
    for sae in store.names("codes"):
        keep_derived(store, sae)
    views = addresses(store)
    rows = sum(
        record.rows for name in store.names("stats") for record in store.records(f"stats/{name}")
    )
    with chromium() as browser:
        with serving(root) as (process, address, opening):
            base = address.partition("/?")[0]
            cold, warm = (walk(browser, base, address, views) for _ in range(2))
            check(browser, address, base, store=store, views=views)
            memory = memory_mb(process)
        with serving(root) as (process, address, _):
            again = walk(browser, address.partition("/?")[0], address, views)
    figures: dict[str, Any] = {
        "stats_rows": rows,
        "opens_s": round(opening, 2),
        "server_mb": round(memory),
    }
    for name in views:
        figures[f"{name}_painted_s"] = round(cold[name][0], 3)
        for what, seconds in (("cold", cold), ("warm", warm), ("restarted", again)):
            figures[f"{name}_{what}_s"] = round(seconds[name][1], 3)
    record("explore", figures)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FEATURESTORE_CACHE"] = cache  # of which no answer is known yet
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/store"))
