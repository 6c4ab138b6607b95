"""Classifiers that judge pictures: minicanvas's own, or any timm model with its labels
(docs/evaluation.md)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featurestore.errors import ModelError, UsageError
from sae.devices import pick_device
from sae.evaluation.measures.accuracy import Answer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BATCH = 64
Pictures = Sequence[Image.Image]


class Asked(Protocol):
    """What a picture was to show: a prompt, or a picture with its labels."""

    @property
    def labels(self) -> Mapping[str, str | None]:
        """Family → concept."""

    @property
    def seed(self) -> int:
        """What its noise was drawn from."""


def named(labels: Mapping[str, str | None]) -> dict[str, str]:
    """Return the families that a concept is named of, with it."""
    return {family: concept for family, concept in labels.items() if concept is not None}


class Judge(NamedTuple):
    """One or several classifiers as one."""

    name: str
    labels: dict[str, tuple[str, ...]]
    """family → the concepts that it can answer"""
    probabilities: Callable[[Pictures], dict[str, npt.NDArray[np.float32]]]
    """pictures → family → ``[n, labels]``"""
    features: Callable[[Pictures], npt.NDArray[np.float32]]
    """pictures → ``[n, d]``, of the first classifier, for distances between sets of pictures"""

    def sees(self, images: Pictures, concepts: Sequence[tuple[str, str]]) -> list[bool]:
        """Say of each picture whether its concept, a family with a name, is seen in it."""
        seen = zip(self._likeliest(self.probabilities(images), len(images)), concepts, strict=True)
        return [found[family] == concept for found, (family, concept) in seen]

    def answers(self, asked: Sequence[Asked], images: Pictures) -> list[Answer]:
        """Return what is seen in the picture of each prompt, in order. The judge has to know every
        label of the prompts (:func:`check_labels`)."""
        found = self.probabilities(images)
        answers = []
        for n, (one, seen) in enumerate(
            zip(asked, self._likeliest(found, len(images)), strict=True)
        ):
            wanted = named(one.labels)
            p = {
                family: float(found[family][n, self.labels[family].index(concept)])
                for family, concept in wanted.items()
            }
            answers.append(Answer(wanted, seen, one.seed, p))
        return answers

    def _likeliest(
        self, found: Mapping[str, npt.NDArray[np.float32]], n: int
    ) -> list[dict[str, str]]:
        """Return the likeliest concepts of n pictures, of ``found`` family → ``[n, labels]``."""
        places = {family: rows.argmax(1) for family, rows in found.items()}
        return [
            {family: self.labels[family][at[i]] for family, at in places.items()} for i in range(n)
        ]


def load_judge(sources: Sequence[str], device: str = "cpu") -> Judge:
    """Load classifiers: ``minicanvas`` (its judge), ``minicanvas:selection``,
    ``minicanvas:large``, ``minicanvas:large:selection``, or directories of timm models, one per
    family.

    A directory has ``model.safetensors`` and ``config.json``:
    ``{"timm": <model>, "family": <name>, "labels": [<concept>, …], "image_size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}``,
    labels in the order of the model's outputs.

    Raises:
        ModelError: there is no such classifier, timm is needed and missing, or two answer for one
            family.
        UsageError: the device is not there.
    """  # noqa: E501
    device = str(pick_device(device))
    judges = [
        _minicanvas(one, device)
        if one.partition(":")[0] == "minicanvas"
        else _timm(Path(one), device)
        for one in sources
    ]
    families = [family for judge in judges for family in judge.labels]
    if not judges or len(set(families)) < len(families):
        raise ModelError(
            f"judges {', '.join(sources) or '(none)'}: expected at least one, and one per family, "
            f"found {families}."
        )
    if len(judges) == 1:
        return judges[0]

    def probabilities(images: Pictures) -> dict[str, npt.NDArray[np.float32]]:
        return {
            family: rows for judge in judges for family, rows in judge.probabilities(images).items()
        }

    labels = {family: names for judge in judges for family, names in judge.labels.items()}
    return Judge(
        " + ".join(judge.name for judge in judges), labels, probabilities, judges[0].features
    )


def check_labels(judge: Judge, asked: Iterable[Mapping[str, str | None]]) -> None:
    """Refuse labels that a judge cannot answer.

    Raises:
        UsageError: a family or a concept is unknown to it.
    """
    for labels in asked:
        for family, concept in named(labels).items():
            if concept not in judge.labels.get(family, ()):
                known = ", ".join(judge.labels.get(family, judge.labels))
                raise UsageError(
                    f"judge {judge.name} cannot answer {family}={concept}: it knows {known}."
                )


def _minicanvas(source: str, device: str) -> Judge:
    from minicanvas import LARGE, SMALL
    from minicanvas.classifier import load_classifier

    canvas = LARGE if f"{source}:".startswith(f"{LARGE.name}:") else SMALL
    name = source.removeprefix(canvas.name).removeprefix(":") or "judge"
    if name not in ("judge", "selection"):
        raise ModelError(
            f"no judge {source!r}: expected minicanvas:judge or minicanvas:selection, or "
            f"minicanvas:large:judge or minicanvas:large:selection."
        )
    try:
        classifier = load_classifier(
            "judge" if name == "judge" else "selection", canvas=canvas, device=device
        )
    except FileNotFoundError as error:
        raise ModelError(str(error)) from error

    def probabilities(images: Pictures) -> dict[str, npt.NDArray[np.float32]]:
        styles, objects = classifier.probabilities(images)
        return {"style": styles, "object": objects}

    return Judge(
        f"{canvas.name}:{name}",
        {"style": canvas.style_labels, "object": canvas.objects},
        probabilities,
        classifier.features,
    )


def _timm(directory: Path, device: str) -> Judge:
    config = _read_config(directory)
    network = _network(directory, config).eval().to(device)
    family, labels = str(config["family"]), tuple(map(str, config["labels"]))
    prepare = _preparation(config)

    @torch.no_grad()
    def run(images: Pictures, function: Callable[[Tensor], Tensor]) -> npt.NDArray[np.float32]:
        chunks = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return np.concatenate(
            [function(prepare(chunk).to(device)).float().cpu().numpy() for chunk in chunks]
        )

    def probabilities(images: Pictures) -> dict[str, npt.NDArray[np.float32]]:
        if not len(images):
            return {family: np.empty((0, len(labels)), np.float32)}
        return {family: run(images, lambda x: network(x).float().softmax(1))}

    def features(images: Pictures) -> npt.NDArray[np.float32]:
        inner: Any = network
        return run(images, lambda x: inner.forward_head(inner.forward_features(x), pre_logits=True))

    return Judge(directory.resolve().name, {family: labels}, probabilities, features)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"judge {directory} has no readable {CONFIG}: {error}.") from error
    missing = [
        key
        for key in ("timm", "family", "labels")
        if not (isinstance(config, dict) and config.get(key))
    ]
    if missing:
        raise ModelError(
            f"{path} lacks {', '.join(missing)}: expected timm, family and labels "
            f"(docs/evaluation.md)."
        )
    return config


def _network(directory: Path, config: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"judge {directory} is the timm model {config['timm']!r}, and timm is not installed: "
            f"pip install timm."
        ) from error
    try:
        network = timm.create_model(
            config["timm"], pretrained=False, num_classes=len(config["labels"])
        )
        network.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"judge {directory}: {WEIGHTS} is not {config['timm']!r} with {len(config['labels'])} "
            f"labels: {reason}."
        ) from error
    assert isinstance(network, nn.Module)
    return network


def _preparation(config: dict[str, Any]) -> Callable[[Pictures], Tensor]:
    size = int(config.get("image_size", 224))
    mean, std = (torch.tensor(config.get(key, [0.5] * 3)).view(3, 1, 1) for key in ("mean", "std"))

    def prepare(images: Pictures) -> Tensor:
        resized = [
            image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for image in images
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(
            0, 3, 1, 2
        )
        return (pixels.float() / 255 - mean) / std

    return prepare
