import numpy as np

from minicanvas import LARGE, PLAIN
from minicanvas.measure import Result, confusions, table


def result(asked_styles, found_styles, asked_objects, found_objects):
    labels = (asked_styles, asked_objects, found_styles, found_objects)
    return Result(np.zeros((4, 64, 64, 3), np.uint8), *(np.array(label) for label in labels))


SHOWN = result(
    ["ink", "ink", "neon", PLAIN],
    ["sketch", "ink", "night", PLAIN],
    ["cat", "cat", "fox", "cat"],
    ["fox", "cat", "fox", "house"],
)


def test_accuracies_are_those_of_the_pictures_asked_for():
    lines = [line.split() for line in table(SHOWN, LARGE).splitlines() if line]
    assert ["ink", "0.500", "0.500", "2"] in lines and ["neon", "0.000", "1.000", "1"] in lines
    assert ["plain", "1.000", "0.000", "1"] in lines
    assert ["cat", "0.500", "0.500", "2"] in lines  # without the plain picture
    assert lines[-1] == ["all", "styled", "0.333", "0.667", "3"]


def test_look_alikes_come_first_and_other_mistakes_after_them():
    lines = [line.split() for line in confusions(SHOWN, LARGE).splitlines()]
    assert lines == [
        ["asked", "for", "found", "share"],
        ["ink", "sketch", "0.500", "look-alike"],
        ["cat", "fox", "0.333", "look-alike"],
        ["neon", "night", "1.000"],
        ["cat", "house", "0.333"],
    ]


def test_without_mistakes_there_is_nothing_to_list():
    assert confusions(result(*[["neon"] * 4] * 2, *[["cat"] * 4] * 2)) == ""
