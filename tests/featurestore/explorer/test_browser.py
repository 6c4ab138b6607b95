"""The page in a real browser: each view as a person would walk it, by mouse, by keys only, light
and dark, wide and narrow."""

import re
from pathlib import Path

import pytest

from queries import ask
from tests.builders.browser import browsing, chromium, find_browser, serving
from tests.builders.codes import random_codes
from tests.builders.explored import HOSTILE, explored_store, weights
from tests.builders.stores import make_store

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:.* few for an interval"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_browser() is None,
        reason="no Chromium found: install it, or name one in FEATURESTORE_BROWSER",
    ),
]
AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")
BASKET = "basket=s,style,neon,cond,t2,-20,"


def views(store):
    sample, other = store.records("samples")[0].sample_ids[:2]
    return {
        "store": "#/store",
        "concepts": "#/concepts?family=style",
        "concept": "#/concept/style/neon",
        "features": "#/features",
        "feature": "#/feature/2?step=1",
        "samples": "#/samples",
        "sample": f"#/samples/{sample}?step=1&feature=2",
        "compare": f"#/samples/{sample}/{other}?step=1&at=0",
        "basket": f"#/basket?{BASKET}",
        "sql": "#/sql?q=select+step,count(*)+as+n+from+stats+group+by+1+order+by+1",
        "nowhere": "#/nowhere",
    }


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def base(store):
    with serving(store, model="minicanvas") as address:
        yield address


@pytest.fixture
def visit(base, browser):
    with browsing(base, browser=browser) as found:
        yield found


def axe(page):
    """What a page, in which :data:`AXE` was run, has against the rules of accessibility."""
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in found["violations"]]


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_every_view_is_accessible_and_fits(store, base, browser, width):
    with browsing(base, width=width, browser=browser) as visit:
        visit.open().evaluate(AXE)
        found = {}
        for name, address in views(store).items():
            page = visit.go(address)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                visit.settled()
                fits = page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
                wide = [] if fits else ["wider than the window"]
                found[f"{name}, {scheme}"] = [*axe(page), *wide]
        assert {name: problems for name, problems in found.items() if problems} == {}


def test_the_store_is_told_as_its_records_say(visit, store):
    page = visit.open()
    text = page.locator("main").inner_text()
    assert "6 samples" in text
    assert "4 concepts" in text
    rows = page.locator("section", has=page.get_by_role("heading", name="Tables")).locator(
        "tbody tr"
    )
    stats = sum(record.rows for record in store.records("stats/s"))
    assert rows.filter(has_text="stats/s").locator("td").nth(1).inner_text() == str(stats)
    assert page.locator(".wall img").count() == 4
    assert (
        page.locator(".wall img").first.evaluate(
            "image => image.decode().then(() => image.naturalWidth)"
        )
        == 96
    )


def test_the_numbers_are_those_of_sql(visit, store):
    page = visit.open("#/concepts?family=style")
    best = ask(store, "best_features", {"sae": "s", "family": "style", "top": 6}).to_pylist()
    shown = page.locator(".concepts > li").filter(has_text="neon").locator(".chip b")
    assert shown.all_inner_texts() == [
        str(row["feature"]) for row in best if row["concept"] == "neon"
    ]
    visit.go("#/features?sort=-density")
    dense = ask(store, "dense_features", {"sae": "s", "threshold": 0}).to_pylist()
    cells = page.get_by_role("region", name="Features").locator("tbody tr td:first-child")
    assert cells.all_inner_texts() == [str(row["feature"]) for row in dense]
    visit.go("#/concept/style/neon?feature=2&step=1")
    [row] = [r for r in ask(store, "concept_scores", {"sae": "s", "family": "style", "concept": "neon", "top": 24}).to_pylist()
             if (r["feature"], r["step"]) == (2, 1)]  # fmt: skip
    assert float(page.locator(".cell .big").inner_text().split()[0]) == pytest.approx(
        row["score"], rel=6e-3
    )
    top = ask(store, "cell_samples", {"sae": "s", "feature": 2, "step": 1, "top": 8}).to_pylist()
    links = page.locator(".cell .thumb").evaluate_all("found => found.map((a) => a.hash)")
    assert [re.search(r"samples/(\d+)", link)[1] for link in links] == [
        str(r["sample_id"]) for r in top
    ]


def test_back_forward_reload_and_a_copied_address_give_the_same_page(visit, base, browser):
    page = visit.open("#/concepts?family=style")
    page.get_by_role("link", name="neon", exact=True).click()
    page.get_by_role("heading", name="neon", level=1).wait_for()
    page.locator(".cell").get_by_role("button", name="Two best of each step").click()
    page.get_by_role("link", name="Basket 1").click()
    page.get_by_role("heading", name="Basket", level=1).wait_for()
    address = page.url
    page.go_back()
    page.get_by_role("heading", name="neon", level=1).wait_for()
    page.go_forward()
    page.get_by_role("heading", name="Basket", level=1).wait_for()
    page.reload()
    visit.settled()
    assert page.url == address
    assert page.get_by_label("Best features of each step").input_value() == "2"
    with browsing(base, browser=browser) as other:
        other.open()
        copied = other.go(address.partition("/#")[2])
        assert copied.get_by_label("Best features of each step").input_value() == "2"


def test_everything_can_be_reached_with_keys_only(visit):
    page = visit.open()
    keys = page.keyboard
    keys.press("?")
    page.get_by_role("dialog").get_by_text("previous and next step").wait_for()
    keys.press("Escape")
    keys.press("/")
    keys.type("neo")
    page.get_by_role("option", name="neon").first.wait_for()
    keys.press("Enter")
    page.get_by_role("heading", name="neon", level=1).wait_for()
    visit.settled()
    page.locator(".heat-canvas").first.focus()
    before = page.locator(".cell h3").inner_text()
    keys.press("ArrowDown")
    keys.press("ArrowRight")
    visit.settled()
    assert page.locator(".cell h3").inner_text() != before
    page.locator(".cell").get_by_role("button", name="Two best of each step").focus()
    keys.press("Enter")
    page.get_by_role("link", name="Basket 1").wait_for()
    page.locator("main").focus()
    keys.press("j")
    first = page.evaluate("() => document.activeElement.href")
    keys.press("j")
    second = page.evaluate("() => document.activeElement.href")
    keys.press("k")
    assert page.evaluate("() => document.activeElement.href") == first != second
    visit.go("#/feature/2?step=1")
    for key, step in [("]", "2"), ("[", "1"), ("[", "0"), ("[", "0")]:
        keys.press(key)
        page.wait_for_timeout(50)
        assert f"step={step}" in page.url


def test_a_position_shows_its_features_and_a_feature_its_map(visit, store):
    sample = store.records("samples")[0].sample_ids[0]
    page = visit.open(f"#/samples/{sample}?step=1")
    box = page.locator(".positions").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    page.get_by_role("heading", name="Fires at position 1").wait_for()
    visit.settled()
    rows = ask(store, "position_features", {"sae": "s", "sample": sample, "step": 1}).to_pylist()
    here = [str(row["feature"]) for row in rows if row["position"] == 1]
    shown = page.get_by_role("region", name="Features that fire").locator("tbody button")
    assert shown.all_inner_texts() == here
    shown.first.click()
    visit.settled()
    lit = page.locator(".overlay").evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, 2, 2).data).filter((_, i) => i % 4 "
        "=== 3 && _ > 0).length"
    )
    cells = ask(
        store, "feature_map", {"sae": "s", "sample": sample, "feature": int(here[0])}
    ).to_pylist()
    assert lit == len([cell for cell in cells if cell["step"] == 1])


def test_sql_answers_sorts_saves_and_says_what_is_wrong(visit, store):
    page = visit.open("#/sql")
    editor = page.get_by_label("Statement")
    editor.fill("select feature, count(*) as n from stats group by 1")
    editor.press("Control+Enter")
    answer = page.get_by_role("region", name="Answer").last
    answer.locator("tbody tr").first.wait_for()
    expected = dict(
        ask(store, "dense_features", {"sae": "s", "threshold": 0}).select(["feature"]).to_pydict()
    )["feature"]
    assert sorted(map(int, answer.locator("tbody td:first-child").all_inner_texts())) == sorted(
        expected
    )
    answer.get_by_role("button", name="feature").click()
    answer.get_by_role("button", name="feature").click()
    assert answer.locator("tbody td:first-child").first.inner_text() == str(min(expected))
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").first.click()
    assert Path(saved.value.path()).read_text().splitlines()[0] == "feature,n"
    assert "q=select" in page.url
    editor.fill("select fature from stats")
    page.get_by_role("button", name="Run").click()
    page.get_by_role("alert").get_by_text("feature").wait_for()
    visit.problems = [p for p in visit.problems if "400" not in p]
    editor.fill("select count(*) from range(1000000000000) t(a) where a % 7 = 3")
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()


def test_ten_thousand_rows_are_a_table_of_which_only_what_is_seen_is_in_the_page(visit):
    page = visit.open("#/sql?q=select+range+as+n+from+range(20480)")
    answer = page.get_by_role("region", name="Answer").last
    answer.locator("tbody tr").first.wait_for()
    page.get_by_text("10,000 rows").wait_for()
    assert answer.locator("table").get_attribute("aria-rowcount") == "10001"
    assert answer.locator("tbody tr").count() < 60
    answer.evaluate("box => { box.scrollTop = box.scrollHeight; }")
    answer.get_by_text("9,999", exact=True).wait_for()
    assert answer.locator("tbody tr").count() < 60


UNKNOWN = [
    ("#/nowhere", "There is no view “nowhere”", "Concepts"),
    ("#/feature/99", "SAE s has no feature “99”", "11"),
    ("#/feature/abc", "SAE s has no feature “abc”", "0"),
    ("#/concept/style/noen", "No sample carries style = “noen”", "neon"),
    ("#/concept/nope/x", "No sample carries nope = “x”", "style"),
    ("#/concepts?sae=zz", "This store has no SAE “zz”", "s"),
    ("#/concepts?family=zz", "This store has no concept family “zz”", "style"),
    ("#/samples/5", "This store has no sample “5”", "All samples"),
    ("#/basket?basket=zz,style,neon,cond,t2,-5,", "The basket names SAE “zz”", "neon"),
]


def test_an_unknown_name_in_an_address_is_said_with_links(visit):
    page = visit.open()
    for address, said, link in UNKNOWN:
        visit.go(address)
        page.get_by_text(said).first.wait_for()
        named = page.locator("main").get_by_role("link", name=link, exact=True)
        assert named.count() > 0, address


def test_names_that_are_meant_to_harm_are_shown_as_text(tmp_path, browser):
    names = HOSTILE
    store = explored_store(tmp_path / "store", names=names, labels={"style": names})
    with serving(store) as base, browsing(base, browser=browser) as visit:
        visit.open()
        for address in ("#/store", "#/concepts", "#/samples", "#/feature/2"):
            page = visit.go(address)
            assert page.locator("main img[src='x'], main script").count() == 0
        ids = store.records("samples")[0].sample_ids
        for name, sample in zip(names, ids, strict=True):
            page = visit.go(f"#/samples/{sample}")
            assert page.locator("h1").inner_text()[:40] == name[:40]
            page.get_by_role("link", name=name[:20]).first.click()
            visit.settled()
            assert page.locator(".heat-canvas").count() == 1
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of 26 styles, one sample each."""
    labels = {"style": [f"style {i}" for i in range(26)]}
    return make_store(
        tmp_path_factory.mktemp("many") / "store",
        random_codes(5, samples=26),
        labels,
        size=(2, 2),
        weights=weights(),
    )


def test_concepts_come_in_the_order_of_their_numbers_and_all_when_asked(many, browser):
    with serving(many) as base, browsing(base, browser=browser) as visit:
        page = visit.open("#/concepts")
        names = page.locator(".concepts h3 a")
        assert names.all_inner_texts() == [f"style {i}" for i in range(20)]
        page.get_by_role("button", name="Show all 26").click()
        visit.settled()
        assert names.all_inner_texts() == [f"style {i}" for i in range(26)]
        assert page.get_by_role("button", name="Show all").count() == 0
        page.reload()
        visit.settled()
        assert names.count() == 26


def test_an_interval_that_reaches_below_zero_has_zero_within(many, browser):
    asked = {"sae": "s", "family": "style", "concept": "style 3", "top": 8, "at_step": 1}
    rows = ask(many, "bootstrap", asked).to_pylist()
    low, high = min(r["low"] for r in rows), max(r["high"] for r in rows)
    assert low < 0 < high
    with serving(many) as base, browsing(base, browser=browser) as visit:
        page = visit.open("#/concept/style/style%203?step=1")
        page.locator(".intervals .range").first.wait_for()
        drawn = page.locator(".intervals .range").evaluate_all(
            "all => all.map((range) => ['s', 'i', 'b'].map((part) => "
            "parseFloat(range.querySelector(part).style.left)))"
        )
    places = [
        [100 * (r - low) / (high - low) for r in (0, row["low"], row["score"])] for row in rows
    ]
    assert len(drawn) == len(places) > 0
    for found, expected in zip(drawn, places, strict=True):
        assert found == pytest.approx(expected, abs=0.01)


def test_a_store_that_grows_is_noticed(tmp_path, browser):
    store = explored_store(tmp_path / "store")
    extra = explored_store(tmp_path / "other", sae="more")
    with serving(store) as base, browsing(base, browser=browser) as visit:
        page = visit.open()
        assert page.locator(".notice").count() == 0
        record = extra.record("saes", "more")
        (store.root / "saes/more").mkdir()
        for path in (*(entry.path for entry in record.files), record.location):
            (store.root / path).write_bytes((extra.root / path).read_bytes())
        page.get_by_role("button", name="Show what it holds now").click()
        page.get_by_role("heading", name="SAE more", exact=True).wait_for()
        assert page.locator(".notice").count() == 0


def test_a_store_that_lacks_something_works_as_far_as_it_can(tmp_path, browser):
    bare = explored_store(tmp_path / "bare", pictures=False, labels={})
    one = explored_store(tmp_path / "one", labels={"style": ["neon"] * 6})
    fresh = explored_store(tmp_path / "fresh")
    for record in [r for table in ("codes/s", "stats/s") for r in fresh.records(table)]:
        fresh.remove(record)
    for store, told in [
        (bare, ["kept without their pictures", "carry no labels", "--images"]),
        (one, ["style has one concept only, neon", "featurestore collect --store"]),
        (fresh, ["not encoded yet with SAE s", "featurestore encode --store"]),
    ]:
        with serving(store) as base, browsing(base, browser=browser) as visit:
            visit.open()
            for address in views(store).values():
                if address.startswith("#/sql"):
                    continue
                page = visit.go(address)
                assert page.locator("main .problem").count() <= address.count("basket")
            visit.go("#/store")
            for text in told:
                assert text in page.locator("main").inner_text()
            page = visit.go("#/feature/2")
            if store is not fresh:
                page.get_by_role("heading", name="Feature 2").wait_for()
            if store is one:
                labels = page.locator(".heat-labels")
                labels.get_by_role("link", name="neon", exact=True).wait_for()


def test_the_basket_draws_before_and_after(live_store, model_dir, browser):
    with (
        serving(live_store, model=str(model_dir)) as base,
        browsing(base, browser=browser) as visit,
    ):
        page = visit.open("#/basket?basket=small,style,neon,cond,t2,-5,&steps=3")
        page.get_by_role("button", name="Draw").click()
        page.locator(".rungs .done").nth(6).wait_for()
        page.locator(".progress").wait_for(state="detached")
        before, after = page.get_by_alt_text("before"), page.get_by_alt_text("after, multiplier")
        assert before.evaluate("image => image.decode().then(() => image.naturalWidth)") > 8
        first = after.get_attribute("src")
        page.locator(".ladder input").press("ArrowRight")
        assert after.get_attribute("src") != first
        assert "factor=2" in page.url
