"""``make screenshots``: the pictures of docs/explorer.md, from the same walk as the tests, on a demo's store."""

import sys
from pathlib import Path

from featurestore import Store
from tests.builders.browser import browsing, chromium, serving


def main(root: Path, out: Path) -> None:
    """Save a picture of each view of the demo's store."""
    store = Store.open(root)
    sample = store.records("samples")[0].sample_ids[0]
    walk = {
        "store": "#/store",
        "concepts": "#/concepts?family=style",
        "concept": "#/concept/style/neon",
        "feature": "#/feature/FEATURE?sae=styles&step=10",
        "sample": f"#/samples/{sample}?sae=styles&step=4&feature=FEATURE",
        "basket": "#/basket?basket=styles,style,neon,cond,t2,-20,",
        "sql": "#/sql?q=select+timestep,+count(distinct+feature)+as+n_features+from+stats+group+by+1+order+by+1",
    }
    from queries import ask

    feature = ask(store, "best_features", {"sae": "styles", "family": "style", "top": 1}).to_pylist()[4]["feature"]
    out.mkdir(parents=True, exist_ok=True)
    with serving(store, model="minicanvas") as base, chromium() as browser:
        for width, dark in (("wide", False), ("wide", True), ("phone", False)):
            with browsing(base, width=width, dark=dark, browser=browser) as visit:
                visit.open()
                for name, address in walk.items():
                    page = visit.go(address.replace("FEATURE", str(feature)))
                    if name == "basket" and not dark:
                        page.get_by_role("button", name="Draw").click()
                        page.locator(".progress").wait_for(state="detached", timeout=600_000)
                    page.wait_for_timeout(800)
                    suffix = "" if (width, dark) == ("wide", False) else "-dark" if dark else "-phone"
                    page.screenshot(path=out / f"{name}{suffix}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
