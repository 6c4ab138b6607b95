import numpy as np
import pytest
from PIL import Image

from minicanvas import OBJECTS, STYLE_LABELS
from minicanvas.classifier import load_classifier
from minicanvas.train.data import labels, pictures


@pytest.mark.parametrize("name", ["selection", "judge"])
def test_fresh_renderings_are_recognised(name):
    images = pictures(12345, 110, n_processes=1).images
    styles, objects = labels(110)
    found_styles, found_objects = load_classifier(name).classify(images)
    assert (
        np.mean([STYLE_LABELS[i] == found for i, found in zip(styles, found_styles, strict=True)])
        >= 0.98
    )
    assert (
        np.mean([OBJECTS[i] == found for i, found in zip(objects, found_objects, strict=True)])
        >= 0.98
    )


def test_the_two_are_not_the_same():
    selection, judge = load_classifier("selection").config, load_classifier("judge").config
    assert selection["seed"] != judge["seed"] and selection["widths"] != judge["widths"]


def test_pil_images_and_arrays_give_the_same(judge):
    images = pictures(1, 3, n_processes=1).images
    as_pil = [Image.fromarray(image) for image in images]
    assert judge.classify(images) == judge.classify(as_pil)
    assert np.array_equal(judge.features(images), judge.features(as_pil))


def test_features_have_a_row_a_picture(judge):
    images = pictures(1, 3, n_processes=1).images
    assert judge.features(images).shape == (3, judge.config["n_features"])
    assert judge.features(images).dtype == np.float32
    assert judge.classify([]) == ([], []) and judge.features([]).shape == (
        0,
        judge.config["n_features"],
    )


@pytest.mark.parametrize("images", [np.zeros((1, 64, 64, 3)), np.zeros((1, 32, 32, 3), np.uint8)])
def test_other_arrays_are_refused(judge, images):
    with pytest.raises(ValueError, match=r"expected pictures uint8 \[n, 64, 64, 3\], found"):
        judge.classify(images)


def test_an_unknown_classifier_is_refused():
    with pytest.raises(
        ValueError, match=r"no classifier 'other' in .*ships 'selection' and 'judge'"
    ):
        load_classifier("other")
