"""What the basket draws is what ``featurestore generate`` draws: to the last bit, from the commands
that the page shows."""

import io
import itertools
import json
import shlex
import time

import numpy as np
import pytest
from PIL import Image

from featurestore import Selection
from featurestore.explorer.basket.entries import Entry, selection
from tests.featurestore.explorer.conftest import opened, run

ENTRY = {
    "sae": "small",
    "family": "style",
    "concept": "neon",
    "branch": "cond",
    "top": 2,
    "multiplier": -20,
}
DRAWN = {"prompt": "picture 7", "seed": 3, "steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def client(live_store, model_dir):
    with opened(live_store, model=str(model_dir)) as found:
        yield found


def draw(client, entries, factors=(1.0,), **more):
    """The events of a drawing, to its end."""
    answer = client.post(
        "/api/draw", json={**DRAWN, "entries": entries, "factors": list(factors), **more}
    )
    assert answer.status_code == 200, answer.text
    lines = client.get(f"/api/draw/{answer.json()['job']}/events").text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def pictures(client, events):
    """Factor → pixels."""
    found = {}
    for event in events:
        if event["event"] == "picture":
            found[event["factor"]] = pixels(client.get(f"/drawn/{event['key']}.png").content)
    return found


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)))


def generated(tmp_path, commands):
    """The picture that the page's commands make."""
    words = shlex.split(commands.replace("\\\n", " "), comments=True)
    starts = [i for i, word in enumerate(words) if word == "featurestore"] + [len(words)]
    for first, end in itertools.pairwise(starts):
        run(*words[first + 1 : end])
    [file] = (tmp_path / "pictures").glob("*.png")
    return pixels(file.read_bytes())


@pytest.mark.parametrize(
    "entries",
    [
        [ENTRY],
        [{**ENTRY, "window": [700.0, 1.0]}],
        [ENTRY, {**ENTRY, "concept": "sketch", "multiplier": -3, "top": 3}],
    ],
    ids=["one concept", "a window of steps", "two concepts"],
)
def test_a_drawing_is_that_of_the_commands_to_the_last_bit(client, tmp_path, monkeypatch, entries):
    events = draw(client, entries)
    drawn = pictures(client, events)
    made = client.post("/api/basket", json={"entries": entries, **DRAWN}).json()
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(generated(tmp_path, made["commands"]), drawn[1.0])
    assert not np.array_equal(drawn[1.0], drawn[None])


def test_the_python_lines_draw_the_same(client, tmp_path, monkeypatch):
    drawn = pictures(client, draw(client, [ENTRY]))
    made = client.post("/api/basket", json={"entries": [ENTRY], **DRAWN}).json()
    names = {}
    exec(made["python"], names)  # as a reader would run it
    assert np.array_equal(np.array(names["picture"]), drawn[1.0])


def test_features_chosen_by_hand_are_those_of_the_saved_file(
    client, live_store, tmp_path, monkeypatch
):
    features = sorted(Selection.from_header(*_selected(live_store)).features())[:2]
    entry = {**{k: v for k, v in ENTRY.items() if k != "top"}, "features": features}
    drawn = pictures(client, draw(client, [entry]))
    made = client.post("/api/basket", json={"entries": [entry], **DRAWN}).json()
    [file] = made["files"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / file["name"]).write_text(file["text"])
    assert np.array_equal(generated(tmp_path, made["commands"]), drawn[1.0])
    loaded = client.post(
        f"/api/basket/load?name={file['name']}", content=file["text"].encode()
    ).json()
    assert loaded["entry"]["features"] == features
    assert loaded["note"] == ""


def _selected(store):
    chosen = selection(store, Entry.parse(ENTRY))
    return chosen.header(), chosen.rows, store.root / "x"


def test_the_steps_are_told_and_what_was_drawn_is_kept(client):
    prompt = f"picture {time.time()}"
    first = draw(client, [ENTRY], factors=[1.0, 0.0, 2.0], prompt=prompt)
    steps = [(event["picture"], event["step"]) for event in first if event["event"] == "step"]
    assert steps == [(picture, step) for picture in range(4) for step in (1, 2, 3)]
    assert [event["event"] for event in first][-1] == "done"
    again = draw(client, [ENTRY], factors=[1.0, 0.0, 2.0], prompt=prompt)
    assert not [event for event in again if event["event"] == "step"]
    other = draw(client, [{**ENTRY, "multiplier": -40}], factors=[0.5], prompt=prompt)
    assert not [event for event in other if event["event"] == "step"], "-40 × 0.5 is -20 × 1"


def test_with_an_empty_basket_only_the_picture_as_it_is_is_drawn(client):
    events = draw(client, [])
    assert [event["factor"] for event in events if event["event"] == "picture"] == [None]


def test_what_is_wrong_with_a_drawing_is_said(client, live_store):
    for given, said in [
        ({"entries": [], "prompt": ""}, "a prompt is text of 1 to 10,000 characters"),
        ({"entries": [{**ENTRY, "concept": "noen"}]}, "Did you mean 'neon'"),
        ({"entries": [{**ENTRY, "top": 0}]}, "top 0: expected a whole number, at least 1"),
        ({"entries": [{**ENTRY, "features": [1]}]}, "either top, a number, or features"),
        ({"entries": [{**ENTRY, "multiplier": "x"}]}, "multiplier 'x': expected a number"),
        ({"entries": "x"}, "a basket is a list of at most 100 entries"),
        ({"entries": [], "seed": -1}, "seed -1: expected a whole number"),
    ]:
        answer = client.post("/api/draw", json={**DRAWN, **given})
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    with opened(live_store, model="no-such-model") as other:
        events = draw(other, [])
        assert events[-1]["event"] == "failed"
        assert "no model 'no-such-model'" in events[-1]["error"]
    with opened(live_store) as none:
        assert (
            "no model to draw with"
            in none.post("/api/draw", json={**DRAWN, "entries": []}).json()["error"]
        )


def test_a_file_that_is_no_selection_is_refused_by_its_own_name(client):
    answer = client.post("/api/basket/load?name=cats.json", content=b'{"a": 1}')
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("cats.json is no selection: ")
