import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from minicanvas import (
    LARGE,
    OBJECTS,
    PLAIN,
    SMALL,
    STYLES,
    WEIGHTS_DIR,
    all_prompts,
    parse_prompt,
    prompt,
)

PRESENT = "cf4867863ced91f160cc39a58e0111e3d43e235a0480f1032ec7aee829d94cfb"
"""of the prompts when the small benchmark was the only one"""


def test_there_are_ten_styles_and_ten_objects():
    assert len(set(STYLES)) == len(set(OBJECTS)) == 10
    assert "neon" in STYLES and "cat" in OBJECTS and PLAIN not in STYLES


def test_the_small_benchmarks_prompts_are_the_same_to_the_letter():
    rows = "\n".join(str(row) for row in all_prompts(include_plain=True))
    assert hashlib.sha256(rows.encode()).hexdigest() == PRESENT


def test_the_large_benchmark_has_the_small_ones_and_a_look_alike_for_each_object():
    assert len(set(LARGE.styles)) == len(set(LARGE.objects)) == 20
    assert LARGE.styles[:10] == STYLES and LARGE.objects[:10] == OBJECTS
    alike = [label for group in LARGE.look_alikes for label in group]
    assert len(alike) == len(set(alike)) and set(alike) <= {*LARGE.styles, *LARGE.objects}
    assert {*LARGE.objects, *LARGE.styles[10:]} <= set(alike)
    assert len(LARGE.all_prompts(include_plain=True)) == 420
    for row in LARGE.all_prompts(include_plain=True):
        assert LARGE.parse_prompt(row["prompt"]) == row
    with pytest.raises(ValueError, match="unknown object 'fox'; expected one of cat, fish"):
        parse_prompt("An image of fox.")


def test_the_large_benchmarks_weights_lie_apart():
    """What is drawn with the small one is known by the hash of all that its folder holds."""
    assert SMALL.folder == WEIGHTS_DIR and not LARGE.folder.is_relative_to(WEIGHTS_DIR)


def test_missing_weights_are_told_with_how_to_get_them(tmp_path):
    absent = replace(LARGE, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="weights of minicanvas:large are not in this pack"):
        absent.directory("pipeline")
    assert SMALL.directory("pipeline") == WEIGHTS_DIR / "pipeline"


def test_prompts_read_as_documented():
    assert prompt("cat", "neon") == "An image of cat in neon style."
    assert prompt("cat") == prompt("cat", None) == prompt("cat", PLAIN) == "An image of cat."


def test_every_prompt_parses_to_its_labels():
    labelled = all_prompts(include_plain=True)
    assert len({row["prompt"] for row in labelled}) == len(labelled) == 110
    assert len(all_prompts()) == 100
    for row in labelled:
        assert parse_prompt(row["prompt"]) == row
        assert prompt(row["object"], row["style"]) == row["prompt"]


@pytest.mark.parametrize(
    "text", ["", "a cat", "An image of dog.", "An image of cat in plain style.", "An image of cat"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        parse_prompt(text)


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="unknown object 'dog'; expected one of cat, fish"):
        prompt("dog", "neon")
    with pytest.raises(ValueError, match="unknown style 'noir'; expected one of neon, sketch"):
        prompt("cat", "noir")


def test_the_package_imports_without_torch():
    code = "import minicanvas, sys; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
