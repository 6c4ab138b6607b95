"""What the server answers: the questions' numbers, once per state of the store, to this machine's
page only."""

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image
from starlette.testclient import TestClient

from featurestore import Store
from featurestore.errors import FeatureStoreError
from featurestore.explorer import asking
from featurestore.explorer.answers import Answers, CancelledError
from featurestore.explorer.server import listen, make_app
from featurestore.vocabulary import BY_FEATURE
from queries import ask
from tests.builders.explored import HOSTILE, explored_store
from tests.featurestore.explorer.conftest import PORT, TOKEN, opened

ASKED = [
    ("best_scores", {"sae": "s", "family": "style", "top": 3}),
    ("concept_scores", {"sae": "s", "family": "style", "concept": "neon", "top": 4}),
    ("feature_concepts", {"sae": "s", "feature": 2}),
    ("top_samples", {"sae": "s", "feature": 2, "top": 3}),
    ("sae_steps", {"sae": "s"}),
    ("dense_features", {"sae": "s", "threshold": 0}),
]


def table(answer):
    """An answer's rows, ids as numbers again."""
    columns = answer["columns"]
    names = list(columns)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{k: int(v) if k == "sample_id" else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(("name", "parameters"), ASKED)
def test_an_answer_is_that_of_the_question(store, client, name, parameters):
    answer = client.get(f"/api/ask/{name}", params=parameters).json()
    assert table(answer) == ask(store, name, parameters).to_pylist()
    assert answer["n_rows"] > 0
    assert answer["sql"].startswith(f"-- {name}: ")
    assert answer["command"].startswith(f"featurestore query {store.root} {name} -p sae=s")


def test_an_answer_comes_as_a_file_too(store, client):
    address, parameters = "/api/ask/top_samples", {"sae": "s", "feature": "2", "top": "3"}
    expected = ask(store, "top_samples", parameters)
    given = {
        form: client.get(address, params={**parameters, "format": form})
        for form in ("csv", "parquet", "arrow", "json")
    }
    assert (
        pyarrow.parquet.read_table(io.BytesIO(given["parquet"].content)).to_pylist()
        == expected.to_pylist()
    )
    assert pyarrow.ipc.open_stream(given["arrow"].content).read_all() == expected
    assert (
        pyarrow.csv.read_csv(io.BytesIO(given["csv"].content))["sample_id"].to_pylist()
        == expected["sample_id"].to_pylist()
    )
    assert [row["sample_id"] for row in given["json"].json()] == [
        str(i) for i in expected["sample_id"].to_pylist()
    ]
    assert 'filename="top_samples.csv"' in given["csv"].headers["content-disposition"]
    assert (
        "it is one of csv"
        in client.get(address, params={**parameters, "format": "exe"}).json()["error"]
    )


def test_an_answer_is_computed_once_and_again_when_the_store_has_grown(tmp_path, monkeypatch):
    store = explored_store(tmp_path / "store")
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[1])
        return ask(*args, **kwargs)

    monkeypatch.setattr("queries.ask", counted)
    monkeypatch.setattr("featurestore.explorer.answers._STATE_SECONDS", 0)
    with opened(store) as client:
        address = "/api/ask/concepts?sae=s"
        before = [client.get(address).json() for _ in range(3)]
        assert calls == ["concepts"]
        (store.root / "manifest/samples/zz.json").write_bytes(b"{}")
        (store.root / "manifest/samples/zz.json").unlink()
        assert client.get("/api/state").json()["state"] == before[0]["state"]
        extra = explored_store(tmp_path / "other", sae="more")
        record = extra.record("saes", "more")
        (store.root / "saes/more").mkdir()
        for entry in record.files:
            (store.root / entry.path).write_bytes((extra.root / entry.path).read_bytes())
        (store.root / record.location).write_bytes((extra.root / record.location).read_bytes())
        assert client.get("/api/state").json()["state"] != before[0]["state"]
        assert client.get(address).status_code == 200
        assert calls == ["concepts", "concepts"]
        assert [sae["name"] for sae in client.get("/api/overview").json()["saes"]] == ["more", "s"]


def test_pictures_are_small_and_kept_for_ever_by_the_browser(store, client):
    sample = store.records("samples")[0].sample_ids[1]
    thumbnail, whole = (client.get(f"/pictures/{sample}/{size}") for size in (96, 0))
    assert "immutable" in thumbnail.headers["cache-control"]
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (96, 96)
    kept = store.arrow("samples", ["image"])["image"][1].as_py()["bytes"]
    assert whole.content == kept
    assert client.get(f"/pictures/{sample}/384").content == kept, (
        "not larger than a thumbnail: as it is"
    )
    assert "come in the sizes 96" in client.get(f"/pictures/{sample}/5000").json()["error"]
    assert "has no sample 1." in client.get("/pictures/1/96").json()["error"]


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"host": "evil.example:8765"}, "/api/overview"),
        ({"host": "127.0.0.1:9"}, "/api/overview"),
        ({"origin": "http://evil.example"}, "/api/overview"),
        ({"origin": "null"}, "/api/sql"),
        ({"sec-fetch-site": "cross-site"}, "/pictures/1/96"),
    ],
)
def test_other_hosts_and_pages_are_refused(client, headers, address):
    assert client.get(address, headers=headers).status_code == 403
    assert client.post(address, headers=headers, json={}).status_code == 403


def test_without_the_token_nothing_is_shown(store):
    with TestClient(
        make_app(store, token=TOKEN, port=PORT), base_url=f"http://127.0.0.1:{PORT}"
    ) as stranger:
        for address in (
            "/",
            "/?token=wrong",
            "/api/overview",
            "/page/js/main.js",
            "/pictures/1/96",
        ):
            answer = stranger.get(address)
            assert answer.status_code == 403
            assert "needs the address that 'featurestore explore' printed" in answer.text
        answer = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
        assert answer.headers["location"] == "/", "the token does not stay in the address"
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "SameSite=strict" in answer.headers["set-cookie"]


def test_the_page_may_run_no_script_but_its_own(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/api/ask/nothing", "no question 'nothing'"),
        ("/api/ask/concepts?sae=x", "has no SAE 'x'"),
        ("/api/ask/top_samples?sae=s&feature=99", "has the features 0 to 11, not 99"),
        ("/api/ask/top_samples?sae=s&feature=%3Cb%3E", "expected integer"),
        ("/api/ask/concept_scores?sae=s&family=style&concept=noen", "Did you mean 'neon'"),
        ("/api/directions/s/99", "has the features 0 to 11, not 99"),
        ("/api/directions/x/1", "has no SAE 'x'"),
        ("/api/draw/zz/events", "no drawing 'zz'"),
        ("/drawn/zz.png", "no such drawn picture"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(client, address, said):
    answer = client.get(address)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_names_that_are_meant_to_harm_are_only_text(tmp_path):
    names = HOSTILE
    with opened(explored_store(tmp_path / "store", names=names, labels={"style": names})) as client:
        assert client.get("/api/samples").json()["columns"]["prompt"] == names
        listed = [c["name"] for c in client.get("/api/overview").json()["families"][0]["concepts"]]
        assert sorted(listed) == sorted(set(names))
        for name in set(names):
            answer = client.get(
                "/api/ask/concept_scores", params={"sae": "s", "family": "style", "concept": name}
            )
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("application/json")


def test_a_statement_reads_the_store_and_nothing_else(store, client, tmp_path):
    answer = client.post(
        "/api/sql",
        json={"statement": "select style, count(*) as n from samples group by 1 order by 1"},
    )
    assert answer.json()["columns"] == {"style": ["neon", "sketch"], "n": [3, 3]}
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for statement, said in [
        (f"select * from read_csv('{secret}')", "Permission Error"),
        (f"copy samples to '{tmp_path}/x'", "expected one SELECT, found COPY"),
        ("select * from", "syntax error"),
        ("select 1; select 2", "expected one SELECT"),
        ("set memory_limit='100GB'", "expected one SELECT"),
    ]:
        refused = client.post("/api/sql", json={"statement": statement})
        assert refused.status_code == 400
        assert said in refused.json()["error"], refused.json()
    assert "a statement is text" in client.post("/api/sql", json={"statement": 5}).json()["error"]
    assert "no JSON" in client.post("/api/sql", content=b"{").json()["error"]


def test_a_long_answer_is_cut_and_says_so(client, monkeypatch):
    monkeypatch.setattr(asking, "SQL_ROWS", 5)
    statement = "select feature from stats order by feature"
    answer = client.post("/api/sql", json={"statement": statement}).json()
    assert (answer["n_rows"], answer["truncated"]) == (5, True)
    whole = client.post("/api/sql?format=csv", json={"statement": statement}).text.splitlines()
    assert len(whole) > 6


def test_a_statement_cannot_run_for_ever(client, monkeypatch):
    monkeypatch.setattr(asking, "SQL_SECONDS", 0.3)
    endless = "select count(*) from range(1000000000000) t(a) where a % 7 = 3"
    assert (
        "stopped after 0.3 s: ask for less"
        in client.post("/api/sql", json={"statement": endless}).json()["error"]
    )


def test_an_answer_that_nobody_waits_for_is_stopped_and_one_that_somebody_waits_for_is_not(store):
    from queries.connection.statement import sql

    answers, ended = Answers(store), threading.Event()
    endless = partial(sql, store, "select count(*) from range(1000000000000) t(a) where a % 7 = 3")

    def compute():
        try:
            return endless()
        finally:
            ended.set()

    async def both():
        async def gone(who):
            return who in left

        left = set()
        first, second = (
            asyncio.create_task(answers.get(("endless",), compute, gone=partial(gone, who)))
            for who in ("first", "second")
        )
        await asyncio.sleep(0.3)
        left.add("first")
        with pytest.raises(CancelledError, match="nobody waits"):
            await first
        assert not ended.is_set(), "the second still waits"
        left.add("second")
        with pytest.raises(CancelledError, match="nobody waits"):
            await second
        with pytest.raises(CancelledError, match=r"stopped after 0\.3 s"):
            await answers.get(("endless too",), endless, seconds=0.3)

    asyncio.run(both())
    assert ended.wait(100)
    answers.close()


def test_an_error_reaches_everybody_and_is_not_kept(store):
    answers, calls = Answers(store), []

    def fail():
        calls.append(1)
        raise FeatureStoreError("not now")

    async def twice():
        for _ in range(2):
            with pytest.raises(FeatureStoreError, match="not now"):
                await answers.get(("fails",), fail, size=len)

    asyncio.run(twice())
    assert calls == [1, 1]


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    def missing(store):
        with opened(store) as client:
            found = client.get("/api/overview").json()["missing"]
        return {one["what"]: one["command"] for one in found}

    bare = explored_store(tmp_path / "bare", pictures=False, labels={})
    assert set(missing(bare)) == {"pictures", "labels"}
    assert "--images" in missing(bare)["pictures"]
    one = explored_store(tmp_path / "one", labels={"style": ["neon"] * 6})
    assert set(missing(one)) == {"concepts"}
    fresh = explored_store(tmp_path / "fresh")
    for table_name in ("codes/s", "stats/s"):
        for record in fresh.records(table_name):
            fresh.remove(record)
    assert missing(fresh) == {"codes": f"featurestore encode --store {fresh.root} --sae s"}


def test_the_command_opens_without_a_model_library_and_ctrl_c_ends_it(store):
    command = [
        sys.executable,
        "-m",
        "featurestore",
        "explore",
        str(store.root),
        "--no-browser",
        "--model",
        "minicanvas",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        first, address = process.stdout.readline(), process.stdout.readline().strip()
        assert "open this address; Ctrl-C ends it." in first
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}", address)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        opener.addheaders = [("Accept", "text/html")]
        for _ in range(200):
            try:
                page = opener.open(address).read().decode()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        assert "<title>featurestore</title>" in page
        base = address.partition("?")[0]
        assert json.loads(opener.open(f"{base}api/overview").read())["n_samples"] == 6
        loaded = Path(f"/proc/{process.pid}/maps").read_text() if Path("/proc").exists() else ""
        assert "libtorch" not in loaded
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.strip() == "Closed."
    assert err == ""


def test_a_port_that_is_taken_is_said(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            FeatureStoreError, match=f"--port {port}: Address already in use; leave it out"
        ):
            listen(port)


def test_what_takes_longest_is_computed_ahead(tmp_path):
    store = explored_store(tmp_path / "store")
    wanted = {*BY_FEATURE, "sums", "totals"}
    with opened(store, ahead=True):
        while {kind for kind in wanted if store.records(f"{kind}/s")} < wanted:
            time.sleep(0.05)
    with opened(explored_store(tmp_path / "other")):
        assert not Store.open(tmp_path / "other").records("feature_steps/s")


def test_the_lines_of_nearest_directions_give_the_same(client, capsys):
    found = client.get("/api/directions/s/3?top=4").json()
    exec(found["python"], {})
    printed = [line.strip(" []").split() for line in capsys.readouterr().out.splitlines()]
    assert [int(float(feature)) for feature, _ in printed] == found["columns"]["feature"]
    assert [float(cosine) for _, cosine in printed] == pytest.approx(found["columns"]["cosine"])
