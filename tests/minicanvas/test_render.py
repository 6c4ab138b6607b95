import hashlib
import itertools

import numpy as np
import pytest

from minicanvas import LARGE, PLAIN, SMALL, STYLES
from minicanvas.render import render
from minicanvas.train.data import labels, pictures

PRESENT = "fbed15e2fc9a1815466a1847e7efa0f53a14e3e10c0ab81b200a204d1d3eae90"
"""of the pictures that the small benchmark rendered when it was the only one"""


def picture(object_, style, seed=0, canvas=SMALL):
    return render(object_, style, np.random.default_rng(seed), canvas=canvas)


def test_the_small_benchmarks_pictures_are_the_same_bit_for_bit():
    images = pictures(31, 220, n_processes=1).images
    assert hashlib.sha256(images.tobytes()).hexdigest() == PRESENT


@pytest.mark.parametrize("style", LARGE.style_labels)
def test_the_large_benchmark_shares_all_but_the_ground_of_plain_pictures(style):
    large = picture("cat", style, canvas=LARGE)
    assert large.shape == (64, 64, 3) and large.dtype == np.uint8
    if style in SMALL.styles:
        assert np.array_equal(large, picture("cat", style))
    elif style == PLAIN:
        assert not np.array_equal(large, picture("cat", style))
    else:
        with pytest.raises(ValueError, match=f"cannot render 'cat' in '{style}'"):
            picture("cat", style)


def described(style, canvas):
    """The ground's mean colour and its deviation, and how much neighbours differ."""
    rows = []
    for seed, object_ in enumerate(canvas.objects[:5]):
        shown = picture(object_, style, seed, canvas) / 255
        edge = np.ones((64, 64), dtype=bool)
        edge[6:-6, 6:-6] = False
        ground = shown[edge]
        rows.append([*ground.mean(0), *ground.std(0), 4 * np.abs(np.diff(shown, axis=1)).mean()])
    return np.mean(rows, axis=0)


def test_large_plain_pictures_are_unlike_every_style():
    kinds = np.array([described(style, LARGE) for style in LARGE.style_labels])
    apart = np.linalg.norm(kinds[:, None] - kinds, axis=2) + np.diag([np.inf] * len(kinds))
    nearest = dict(zip(LARGE.style_labels, apart.min(axis=1), strict=True))
    assert max(nearest, key=nearest.get) == PLAIN  # no class has a more distant neighbour


@pytest.mark.parametrize("style", (*STYLES, None))
def test_equal_generators_give_equal_pictures(style):
    first = picture("cat", style)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, picture("cat", style))
    assert not np.array_equal(first, picture("cat", style, seed=1))


@pytest.mark.parametrize("canvas", [SMALL, LARGE], ids=lambda canvas: canvas.name)
def test_every_two_styles_differ(canvas):
    shown = {s: picture("house", s, canvas=canvas).astype(float) for s in canvas.style_labels}
    for one, other in itertools.combinations(shown, 2):
        assert np.abs(shown[one] - shown[other]).mean() > 10, (one, other)


@pytest.mark.parametrize("canvas", [SMALL, LARGE], ids=lambda canvas: canvas.name)
def test_every_two_objects_differ(canvas):
    shown = {o: picture(o, "sunset", canvas=canvas).astype(float) for o in canvas.objects}
    for one, other in itertools.combinations(shown, 2):
        assert np.abs(shown[one] - shown[other]).mean() > 10, (one, other)


def test_no_style_is_plain():
    assert np.array_equal(picture("star", None), picture("star", PLAIN))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="cannot render 'dog' in 'neon'"):
        picture("dog", "neon")
    with pytest.raises(ValueError, match="cannot render 'cat' in 'noir'"):
        picture("cat", "noir")
    with pytest.raises(ValueError, match="cannot render 'fox' in 'neon'; objects: cat, fish"):
        picture("fox", "neon")


def test_a_training_picture_depends_on_its_seed_and_index_alone(tmp_path):
    whole = pictures(3, 12, n_processes=1)
    assert np.array_equal(whole.images[:5], pictures(3, 5, n_processes=1).images)
    cached = pictures(3, 12, tmp_path / "cache.npy", n_processes=2)
    assert np.array_equal(whole.images, cached.images)
    assert np.array_equal(whole.images, pictures(3, 12, tmp_path / "cache.npy").images)
    assert not np.array_equal(whole.images, pictures(4, 12, n_processes=1).images)


def test_the_large_benchmarks_labels_are_its_own():
    images, styles, objects = pictures(3, 22, n_processes=1, canvas=LARGE)
    assert (LARGE.style_labels[styles[21]], LARGE.objects[objects[21]]) == ("sketch", "fish")
    rng = np.random.default_rng((3, 21))
    assert np.array_equal(images[21], render("fish", "sketch", rng, canvas=LARGE))
    styles, objects = labels(420, LARGE)
    assert len(set(zip(styles, objects, strict=True))) == 420


def test_labels_take_every_combination_in_turn():
    styles, objects = labels(220)
    assert len(set(zip(styles[:110], objects[:110], strict=True))) == 110
    assert np.array_equal(styles[:110], styles[110:]) and np.array_equal(
        objects[:110], objects[110:]
    )
