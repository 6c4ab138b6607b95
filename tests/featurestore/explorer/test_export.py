"""The exported page: both providers answer alike over one store, and it opens from any static
host."""

import contextlib
import functools
import http.server
import json
import threading
from typing import ClassVar

import pytest

from featurestore.errors import UsageError
from featurestore.explorer.basket.ladders import Ladders
from featurestore.explorer.export import export
from featurestore.format.verified import why_not
from queries import ask
from tests.builders.browser import browsing, chromium, find_browser, serving
from tests.builders.explored import explored_store, png

NO_BROWSER = "no Chromium found: install it, or name one in FEATURESTORE_BROWSER"
pytestmark = pytest.mark.filterwarnings("ignore:.* few for an interval")


@pytest.fixture(scope="module")
def page(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "page"
    export(store, out, features=12)
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def hosted(folder):
    """The address of a static host of a folder."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def static(page):
    with hosted(page) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


BASKET = [
    {"sae": "s", "family": "style", "concept": "neon", "branch": "cond", "top": 2, "multiplier": -5, "window": None},
    {"sae": "s", "family": "object", "concept": "cat", "branch": "cond", "top": 1, "multiplier": 2.5, "window": [961, 941]},
]  # fmt: skip


def calls(store):
    """What the views ask a provider."""
    base = {"sae": "s", "branch": "cond"}
    sample = str(store.records("samples")[0].sample_ids[2])
    feature = {**base, "feature": 2}
    concept = {**base, "family": "style", "concept": "neon"}
    return [
        ["overview"], ["samples"], ["directions", "s", 2, 15],
        ["ask", "sae_steps", base], ["ask", "dense_features", {**base, "threshold": 0}],
        ["ask", "best_scores", {**base, "family": "style", "top": 6}],
        ["ask", "overlap_matrix", {**base, "family": "object", "top": 2}],
        ["ask", "concept_scores", {**concept, "top": 24}], ["ask", "bootstrap", {**concept, "top": 8, "at_step": 1}],
        ["ask", "timestep_profile", feature], ["ask", "feature_concepts", feature],
        ["ask", "top_samples", {**feature, "top": 12}], ["ask", "sample_bands", {**feature, "bands": 4, "top": 8}],
        ["ask", "coactivation", {**feature, "top": 15}], ["ask", "cell_samples", {**feature, "step": 1, "top": 8}],
        ["ask", "feature_map", {**feature, "sample": sample}],
        ["ask", "position_features", {**base, "sample": sample, "step": 1}],
        ["ask", "sample_features", {**base, "sample": sample, "top": 100}],
        ["selections", {"entries": BASKET, "format": "json", "prompt": "it's a \"cat\", \\ 雪", "seed": 3}],
        ["selections", {"entries": BASKET[:1], "format": "json", "prompt": "a cat", "steps": 4, "guidance": 2.5}],
    ]  # fmt: skip


ASKED = """async ([file, name, calls]) => {
    const module = await import(file);
    const provider = name === 'FileProvider' ? await module[name].open('data') : new module[name]();
    return Promise.all(calls.map(([method, ...args]) => provider[method](...args)));
}"""
LEFT_OUT = {"state", "model", "live", "export", "seconds", "parameters", "command"}


def alike(answer):
    """An answer without what only one of the two can know."""
    kept = {key: value for key, value in answer.items() if key not in LEFT_OUT}
    return {**kept, "types": None} if "types" in kept else kept


def near(one, other):
    """Whether two values are the same; numbers to 9 digits: a sum by several threads is rounded in
    their order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return one == pytest.approx(other, rel=1e-9, abs=1e-12)
    return one == other


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_both_providers_answer_alike(store, static, browser):
    asked = calls(store)
    with serving(store) as base, browsing(base, browser=browser) as visit:
        live = visit.open().evaluate(ASKED, [f"{base}/page/js/http.js", "HttpProvider", asked])
    with browsing(static, browser=browser) as visit:
        visit.page.goto(static)
        files = visit.page.evaluate(ASKED, [f"{static}/page/js/files.js", "FileProvider", asked])
    for call, one, other in zip(asked, live, files, strict=True):
        assert near(alike(other), alike(one)), call
        assert one.get("n_rows", 1) > 0, call


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_every_view_opens_from_a_static_host(store, static, browser):
    sample = store.records("samples")[0].sample_ids[0]
    with browsing(static, browser=browser) as visit:
        visit.page.goto(static)
        visit.settled()
        for address in ("#/store", "#/concepts", "#/concept/style/neon", "#/features", "#/feature/2", "#/samples",
                        f"#/samples/{sample}?at=1&feature=2", "#/basket?basket=s,style,neon,cond,t2,-5,", "#/sql"):  # fmt: skip
            page = visit.go(address)
            assert page.locator("main .problem").count() == 0, address
        assert "featurestore explore" in page.locator("main").inner_text()
        visit.go("#/concept/style/neon")
        assert page.locator(".heat-canvas").count() == 1
        assert (
            page.locator(".cell img").first.evaluate(
                "image => image.decode().then(() => image.naturalWidth)"
            )
            > 8
        )


STATEMENTS = [
    "select feature, density from dense_features order by density desc, feature limit 4",
    "select style, count(*) as n from samples group by style order by style",
    "select concept, max(score) as best from concept_scores where family = 'style' group by concept order by concept",
    "with a as (select * from top_samples where feature = 2) select s.sample_id, a.total from a join samples s "
    "on a.sample_id = s.sample_id order by a.total desc",
]  # fmt: skip


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_the_exported_page_runs_sql_over_what_it_holds(store, static, browser):
    with browsing(static, browser=browser) as visit:
        visit.page.goto(static)
        asked = [["sql", statement] for statement in STATEMENTS]
        found = visit.page.evaluate(ASKED, [f"{static}/page/js/files.js", "FileProvider", asked])
        dense = ask(store, "dense_features", {"sae": "s", "threshold": 0}).slice(0, 4)
        assert found[0]["columns"] == dense.select(["feature", "density"]).to_pydict()
        assert found[1]["columns"] == {"style": ["neon", "sketch"], "n": [3, 3]}
        for concept, best in zip(*found[2]["columns"].values(), strict=True):
            scores = ask(store, "concept_scores", {"sae": "s", "family": "style", "concept": concept, "top": 24})  # fmt: skip
            assert best == pytest.approx(max(scores["score"].to_pylist()))
        top = ask(store, "top_samples", {"sae": "s", "feature": 2, "top": 12})
        assert found[3]["columns"]["sample_id"] == [str(i) for i in top["sample_id"].to_pylist()]
        page = visit.go("#/sql")
        page.get_by_label("Statement").fill("select feature, mean from dense_features limit 3")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("3 rows in").wait_for()
        page.get_by_label("Statement").fill("select * from stats")
        page.get_by_role("button", name="Run").click()
        page.get_by_text('Table "stats" not found').wait_for()


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_pictures_that_were_drawn_go_along(store, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    why_not.cache_clear()
    with pytest.raises(UsageError, match=r"--ladder: nothing was drawn from .* Draw in the basket"):
        export(store, tmp_path / "none", ladder=True)
    factors = [None, 0, 1, 2]
    about = {"prompt": "a cat", "seed": 3, "steps": 4, "guidance": 2.5, "model": "minicanvas", "entries": BASKET[:1]}  # fmt: skip
    about["pictures"] = [{"key": f"{i}" * 32, "factor": f} for i, f in enumerate(factors)]
    pictures = {one["key"]: png(i, 32 + i) for i, one in enumerate(about["pictures"])}
    Ladders(store.root).keep(about, pictures)
    export(store, tmp_path / "page", features=1, samples=0, ladder=True)
    with hosted(tmp_path / "page") as base, browsing(base, browser=browser) as visit:
        visit.page.goto(base)
        page = visit.go("#/basket")
        page.get_by_role("button", name="neon a cat, seed 3").click()
        after = page.get_by_role("img", name="after, multiplier -5")
        width = "image => image.decode().then(() => image.naturalWidth)"
        assert page.get_by_role("img", name="before").evaluate(width) == 32
        assert after.evaluate(width) == 34
        page.locator(".ladder input").press("ArrowRight")
        assert page.get_by_role("img", name="after, multiplier -10").evaluate(width) == 35
        assert "--ablate" in page.get_by_label("Commands").inner_text()
    why_not.cache_clear()


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_a_selection_file_is_loaded_without_a_server(store, static, browser, tmp_path):
    from queries import select

    made = select(store, "s", "style", "neon", top=2)
    made.save(tmp_path / "neon.json")
    (tmp_path / "other.json").write_text("{}")
    with browsing(static, browser=browser) as visit:
        visit.page.goto(static)
        page = visit.go("#/basket")
        page.locator("input[type=file]").set_input_files(tmp_path / "neon.json")
        page.get_by_text("neon.json is in the basket").wait_for()
        assert "s,style,neon,cond,t2" in page.evaluate("decodeURIComponent(location.hash)")
        page.locator("input[type=file]").set_input_files(tmp_path / "other.json")
        page.get_by_text("other.json is no selection").wait_for()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A store without pictures, labels and codes."""
    store = explored_store(tmp_path_factory.mktemp("bare") / "store", pictures=False, labels={})
    for record in [r for table in ("codes/s", "stats/s") for r in store.records(table)]:
        store.remove(record)
    return store


def test_the_size_is_told_before_anything_is_written(bare, tmp_path):
    told = []

    def refuse(written):
        told.append(written)
        assert not (tmp_path / "page").exists()
        return False

    assert export(bare, tmp_path / "page", agree=refuse) is None
    assert told[0].files > 10
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "page").mkdir()
    with pytest.raises(UsageError, match="page exists: name a new directory for --export"):
        export(bare, tmp_path / "page")


def test_a_store_without_pictures_labels_or_codes_is_exported_as_far_as_it_goes(bare, tmp_path):
    export(bare, tmp_path / "page")
    found = json.loads((tmp_path / "page/data/overview.json").read_text())
    assert {one["what"] for one in found["missing"]} == {"pictures", "labels", "codes"}
    assert not (tmp_path / "page/data/pictures").exists()


def test_names_that_are_meant_to_harm_do_not_leave_the_folder(tmp_path):
    from tests.builders.explored import HOSTILE

    names = ["../../evil", *HOSTILE[1:]]
    export(
        explored_store(tmp_path / "store", names=names, labels={"style": names}),
        tmp_path / "out" / "page",
        features=1,
    )
    outside = {path.name for path in tmp_path.iterdir()} | {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert outside == {"store", "out", "page"}


def test_push_puts_the_page_beside_the_data_set(store, monkeypatch, tmp_path):
    import huggingface_hub

    from featurestore.cli import main

    class Hub:
        sent: ClassVar[dict] = {}

        def create_repo(self, repo, **kwargs):
            assert kwargs["repo_type"] == ("space" if repo.endswith("-explorer") else "dataset")
            return f"hub/{repo}"

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            files = [
                path.relative_to(folder_path).as_posix()
                for path in folder_path.rglob("*")
                if path.is_file()
            ]
            self.sent.setdefault(repo_id, []).extend(files)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(SystemExit) as stop:
        main(["push", str(store.root), "user/name", "--with-explorer"])
    assert not stop.value.code
    assert {"index.html", "README.md", "page/js/main.js", "data/overview.json"} <= set(
        Hub.sent["user/name-explorer"]
    )
    assert not [path for path in Hub.sent["user/name"] if "index.html" in path]
