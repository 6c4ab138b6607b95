"""Judges: minicanvas's, and timm models with a stand-in of timm's interface."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from featurestore.errors import ModelError
from featurestore.prompts import Prompt
from sae.evaluation.judge import load_judge


class Standin(nn.Module):
    """The interface of a timm model: its head answers with the picture's mean colour."""

    def __init__(self, num_classes, size):
        super().__init__()
        self.size = size
        self.head = nn.Linear(3, num_classes)

    def forward_features(self, x):
        assert x.shape[1:] == (3, self.size, self.size)
        return x

    def forward_head(self, x, pre_logits=False):
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, pretrained, num_classes):
        if name != "standin_24":
            raise RuntimeError(f"Unknown model ({name})")
        assert pretrained is False
        return Standin(num_classes, 24)

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))


def colour_judge(directory, family, labels, rows, **config):
    """A classifier whose head has the given rows."""
    directory.mkdir(exist_ok=True)
    body = {"timm": "standin_24", "family": family, "labels": labels, "image_size": 24, **config}
    (directory / "config.json").write_text(json.dumps(body))
    save_file(
        {"head.weight": torch.tensor(rows).float(), "head.bias": torch.zeros(len(rows))},
        directory / "model.safetensors",
    )
    return str(directory)


def softmax(rows):
    return np.exp(rows) / np.exp(rows).sum(1, keepdims=True)


def seen(judge, images):
    return [answer.seen for answer in judge.answers([Prompt("", 0, {}, 1)] * len(images), images)]


def picture(r, g, b, size=40):
    return Image.fromarray(np.full((size, size, 3), (r, g, b), np.uint8))


def test_a_timm_directory_judges_resized_and_normalised_pictures(timm, tmp_path):
    source = colour_judge(
        tmp_path / "hue",
        "hue",
        ["red", "green", "blue"],
        np.eye(3),
        mean=[0.5, 0.25, 0.0],
        std=[0.5, 0.5, 1.0],
    )
    judge = load_judge([source])
    images = [picture(255, 0, 0), picture(0, 255, 0, 24), picture(0, 0, 255, 60).convert("RGBA")]
    expected_features = np.array([[1, -0.5, 0], [-1, 1.5, 0], [-1, -0.5, 1]], np.float32)
    np.testing.assert_allclose(
        judge.probabilities(images)["hue"], softmax(expected_features), atol=1e-6
    )
    asked = [Prompt("", seed, {"hue": hue}, 1) for seed, hue in enumerate(("red", "red", None))]
    answers = judge.answers(asked, images)
    assert [(a.asked, a.seen, a.seed) for a in answers] == [
        ({"hue": "red"}, {"hue": "red"}, 0),
        ({"hue": "red"}, {"hue": "green"}, 1),
        ({}, {"hue": "blue"}, 2),
    ]
    p = softmax(expected_features)[:, 0]
    assert [a.p for a in answers] == [
        {"hue": pytest.approx(p[0])},
        {"hue": pytest.approx(p[1])},
        {},
    ]
    np.testing.assert_allclose(judge.features(images), expected_features, atol=1e-6)
    assert (judge.name, judge.labels) == ("hue", {"hue": ("red", "green", "blue")})
    assert judge.answers([], []) == [] and judge.probabilities([])["hue"].shape == (0, 3)


def test_several_families_have_a_classifier_each(timm, tmp_path):
    hue = colour_judge(tmp_path / "hue", "hue", ["red", "green", "blue"], np.eye(3))
    warmth = colour_judge(tmp_path / "warmth", "warmth", ["warm", "cold"], [[1, 0, -1], [-1, 0, 1]])
    judge = load_judge([hue, warmth])
    assert seen(judge, [picture(200, 0, 10), picture(0, 0, 99)]) == [
        {"hue": "red", "warmth": "warm"},
        {"hue": "blue", "warmth": "cold"},
    ]
    assert list(judge.labels) == ["hue", "warmth"]
    with pytest.raises(ModelError, match="expected at least one, and one per family, found"):
        load_judge([hue, hue])


def test_minicanvas_judges_its_own_pictures():
    from minicanvas.render import render

    rng = np.random.default_rng(0)
    images = [Image.fromarray(render(o, s, rng)) for o, s in (("cat", "neon"), ("tree", "sunset"))]
    for source in ("minicanvas", "minicanvas:selection"):
        judge = load_judge([source])
        assert seen(judge, images) == [
            {"style": "neon", "object": "cat"},
            {"style": "sunset", "object": "tree"},
        ]
    assert load_judge(["minicanvas"]).features(images).shape[0] == 2


def test_minicanvas_large_has_judges_of_its_own(monkeypatch):
    asked = []

    def loaded(name, *, canvas, device):
        asked.append((name, canvas.name))
        raise FileNotFoundError("the weights are not here")

    monkeypatch.setattr("minicanvas.classifier.load_classifier", loaded)
    for source in ("minicanvas:large", "minicanvas:large:selection", "minicanvas:selection"):
        with pytest.raises(ModelError, match="the weights are not here"):
            load_judge([source])
    assert asked == [
        ("judge", "minicanvas:large"),
        ("selection", "minicanvas:large"),
        ("selection", "minicanvas"),
    ]


def test_what_is_no_judge_is_one_line(timm, tmp_path, monkeypatch):
    good = colour_judge(tmp_path / "hue", "hue", ["red", "green"], [[1, 0, 0], [0, 1, 0]])
    cases = [
        (lambda: load_judge([]), "expected at least one"),
        (
            lambda: load_judge(["minicanvas:best"]),
            "expected minicanvas:judge or minicanvas:selection",
        ),
        (
            lambda: load_judge(["minicanvas:larger"]),
            "no judge 'minicanvas:larger': expected minicanvas:judge",
        ),
        (lambda: load_judge([str(tmp_path / "absent")]), "has no readable config.json"),
        (
            lambda: load_judge([_edited(tmp_path / "a", labels=[])]),
            "lacks labels: expected timm, family and labels",
        ),
        (lambda: load_judge([_edited(tmp_path / "b", timm="vit_giant")]), "Unknown model"),
        (
            lambda: load_judge([_edited(tmp_path / "c", labels=["red", "green", "blue"])]),
            r"is not 'standin_24' with 3 labels: .*size mismatch",
        ),
    ]
    for make, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModelError,
        match="is the timm model 'standin_24', and timm is not installed: pip install timm",
    ):
        load_judge([good])


def _edited(directory, **changes):
    source = colour_judge(directory, "hue", ["red", "green"], [[1, 0, 0], [0, 1, 0]])
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return source
