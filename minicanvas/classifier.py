"""The shipped classifiers: which style and which object a picture shows.

Two are trained apart, from different seeds, pictures and widths: `selection` to choose settings by,
`judge` to report results with, so that nothing is judged by what it was tuned on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from minicanvas import SMALL, Canvas

Name = Literal["selection", "judge"]
Pictures = Sequence[Image.Image] | np.ndarray


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.long = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.short = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, n_out, h, w] for [batch, n_in, h, w]."""
        return F.relu(self.long(x) + self.short(x))


class Network(nn.Module):
    """A small convolutional network with a style head and an object head over shared features."""

    def __init__(
        self,
        widths: Sequence[int],
        n_features: int,
        *,
        canvas: Canvas = SMALL,
        residual: bool = False,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for n_in, n_out in zip((3, *widths[:-1]), widths, strict=True):
            if residual:
                blocks.append(Residual(n_in, n_out))
            else:
                blocks += [
                    nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(n_out),
                    nn.ReLU(),
                ]
            blocks.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*blocks)
        self.penultimate = nn.Linear(widths[-1] * 16, n_features)
        self.style = nn.Linear(n_features, len(canvas.style_labels))
        self.object = nn.Linear(n_features, len(canvas.objects))

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features [batch, n_features] of pictures [batch, 3, 64, 64] in
        [-1, 1]."""
        return F.relu(self.penultimate(self.trunk(images).flatten(1)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the style labels and of the objects, [batch, n_labels] each."""
        features = self.features(images)
        return self.style(features), self.object(features)


class Classifier:
    """A trained network that takes pictures as they come out of a pipeline."""

    def __init__(self, network: Network, config: dict[str, Any], *, canvas: Canvas = SMALL) -> None:
        self.network = network.eval()
        self.config = config
        self.canvas = canvas

    def _run(self, function: nn.Module | Any, images: Pictures, batch: int = 128) -> list[Any]:
        pixels = as_tensor(images)
        device = next(self.network.parameters()).device
        with torch.no_grad():
            return [function(chunk.to(device)) for chunk in pixels.split(batch)]

    def classify(self, images: Pictures) -> tuple[list[str], list[str]]:
        """Return a style label (`PLAIN` for none) and an object label for each picture.

        `images` is a sequence of PIL images or an array uint8 [n, 64, 64, 3].

        Raises:
            ValueError: the pictures are not 64 × 64 RGB bytes.
        """
        styles, objects = self.probabilities(images)
        return (
            [self.canvas.style_labels[i] for i in styles.argmax(1)],
            [self.canvas.objects[i] for i in objects.argmax(1)],
        )

    def probabilities(self, images: Pictures) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of the style labels, then of the objects, float32 [n, n_labels]
        each.

        Raises:
            ValueError: the pictures are not 64 × 64 RGB bytes.
        """
        results = self._run(self.network, images)
        styles = [
            np.empty((0, len(self.canvas.style_labels)), np.float32),
            *(s.softmax(1).cpu().numpy() for s, _ in results),
        ]
        objects = [
            np.empty((0, len(self.canvas.objects)), np.float32),
            *(o.softmax(1).cpu().numpy() for _, o in results),
        ]
        return np.concatenate(styles), np.concatenate(objects)

    def features(self, images: Pictures) -> np.ndarray:
        """Return the penultimate features, float32 [n, n_features], for distances between sets of
        pictures."""
        chunks = self._run(self.network.features, images)
        n_features = self.network.penultimate.out_features
        return np.concatenate(
            [np.empty((0, n_features), np.float32), *(chunk.cpu().numpy() for chunk in chunks)]
        )


def as_tensor(images: Pictures) -> Tensor:
    """Return pictures as float32 [n, 3, 64, 64] in [-1, 1].

    Raises:
        ValueError: the pictures are not 64 × 64 RGB bytes.
    """
    if isinstance(images, np.ndarray):
        pixels = images
    else:
        pixels = np.array(
            [np.asarray(image.convert("RGB")) for image in images], dtype=np.uint8
        ).reshape(-1, 64, 64, 3)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (64, 64, 3):
        raise ValueError(
            f"expected pictures uint8 [n, 64, 64, 3], found {pixels.dtype} {list(pixels.shape)}"
        )
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_classifier(
    name: Name, *, canvas: Canvas = SMALL, directory: Path | None = None, device: str = "cpu"
) -> Classifier:
    """Load a benchmark's classifier, the shipped one or that of a directory; its seed, sizes and
    held-out accuracy are in `config`.

    Raises:
        FileNotFoundError: the benchmark's classifiers do not ship with this package.
        ValueError: there is no classifier of that name, or its labels are not the benchmark's.
    """
    directory = canvas.directory("classifiers") if directory is None else directory
    path = directory / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"no classifier {name!r} in {directory}; the package ships 'selection' and 'judge'"
        )
    config = json.loads(path.read_text())
    if config["styles"] != list(canvas.style_labels) or config["objects"] != list(canvas.objects):
        raise ValueError(
            f"{path}: made for other labels than {canvas.name}'s: "
            f"{config['styles']} × {config['objects']}"
        )
    network = Network(
        config["widths"],
        config["n_features"],
        canvas=canvas,
        residual=config.get("residual", False),
    )
    network.load_state_dict(
        {key: value.float() for key, value in load_file(path.with_suffix(".safetensors")).items()}
    )
    return Classifier(network.to(device), config, canvas=canvas)
