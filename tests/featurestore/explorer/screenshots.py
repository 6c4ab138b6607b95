"""``make screenshots``: the pictures of docs/explorer.md, from the same walk as the tests, on a
demo's store."""

import io
import sys
from pathlib import Path

from PIL import Image

from featurestore import Store
from queries import ask
from tests.builders.browser import browsing, chromium, serving

ALSO = {("wide", True): ["concept"], ("phone", False): ["concept", "feature"]}


def walk(store: Store) -> dict[str, str]:
    """Return the address of each view, of the best feature of neon."""
    best = ask(
        store, "concept_scores", {"sae": "styles", "family": "style", "concept": "neon", "top": 1}
    )
    feature, sample = best["feature"][0].as_py(), store.records("samples")[0].sample_ids[0]
    return {
        "store": "#/store",
        "concepts": "#/concepts?family=style",
        "concept": "#/concept/style/neon",
        "feature": f"#/feature/{feature}?sae=styles&step=3",
        "sample": f"#/samples/{sample}?sae=styles&step=4&feature={feature}",
        "basket": "#/basket?basket=styles,style,neon,cond,t2,-20,&seed=1",
        "sql": "#/sql?q=select+timestep,+count(distinct+feature)+as+n_features+from+stats+group+by+1+order+by+1",
    }


def save(page, path: Path) -> None:
    """Save what the window shows as WebP."""
    page.locator("main img").evaluate_all(
        "images => Promise.all(images.slice(0, 60).map((i) => (i.loading = 'eager', i.decode())))"
    )
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(path, "WEBP", quality=88, method=6)


def main(root: Path, out: Path) -> None:
    """Save a picture of each view of the demo's store."""
    store = Store.open(root)
    out.mkdir(parents=True, exist_ok=True)
    addresses = walk(store)
    with serving(store, model="minicanvas") as base, chromium() as browser:
        for (width, dark), names in {("wide", False): list(addresses), **ALSO}.items():
            with browsing(base, width=width, dark=dark, browser=browser) as visit:
                visit.open()
                for name in names:
                    page = visit.go(addresses[name])
                    if name == "basket":
                        page.get_by_role("button", name="Draw").click()
                        page.locator(".progress").wait_for(state="detached", timeout=900_000)
                        page.locator(".before-after").scroll_into_view_if_needed()
                    if name == "concept":
                        page.locator(".intervals").wait_for()
                    if name == "feature":
                        page.locator(".maps .overlay").first.wait_for()
                    suffix = "-phone" if width == "phone" else "-dark" if dark else ""
                    save(page, out / f"{name}{suffix}.webp")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
