import itertools

import numpy as np
import pytest

from minicanvas import OBJECTS, PLAIN, STYLES
from minicanvas.render import render
from minicanvas.train.data import labels, pictures


def picture(object_, style, seed=0):
    return render(object_, style, np.random.default_rng(seed))


@pytest.mark.parametrize("style", (*STYLES, None))
def test_equal_generators_give_equal_pictures(style):
    first = picture("cat", style)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, picture("cat", style))
    assert not np.array_equal(first, picture("cat", style, seed=1))


def test_every_two_styles_differ():
    shown = {style: picture("house", style).astype(float) for style in (*STYLES, PLAIN)}
    for one, other in itertools.combinations(shown, 2):
        assert np.abs(shown[one] - shown[other]).mean() > 10, (one, other)


def test_every_two_objects_differ():
    shown = {object_: picture(object_, "sunset").astype(float) for object_ in OBJECTS}
    for one, other in itertools.combinations(shown, 2):
        assert np.abs(shown[one] - shown[other]).mean() > 10, (one, other)


def test_no_style_is_plain():
    assert np.array_equal(picture("star", None), picture("star", PLAIN))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="cannot render 'dog' in 'neon'"):
        picture("dog", "neon")
    with pytest.raises(ValueError, match="cannot render 'cat' in 'noir'"):
        picture("cat", "noir")


def test_a_training_picture_depends_on_its_seed_and_index_alone(tmp_path):
    whole = pictures(3, 12, n_processes=1)
    assert np.array_equal(whole.images[:5], pictures(3, 5, n_processes=1).images)
    cached = pictures(3, 12, tmp_path / "cache.npy", n_processes=2)
    assert np.array_equal(whole.images, cached.images)
    assert np.array_equal(whole.images, pictures(3, 12, tmp_path / "cache.npy").images)
    assert not np.array_equal(whole.images, pictures(4, 12, n_processes=1).images)


def test_labels_take_every_combination_in_turn():
    styles, objects = labels(220)
    assert len(set(zip(styles[:110], objects[:110], strict=True))) == 110
    assert np.array_equal(styles[:110], styles[110:]) and np.array_equal(
        objects[:110], objects[110:]
    )
