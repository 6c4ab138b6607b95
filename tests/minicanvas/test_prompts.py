import subprocess
import sys

import pytest

from minicanvas import OBJECTS, PLAIN, STYLES, all_prompts, parse_prompt, prompt


def test_there_are_ten_styles_and_ten_objects():
    assert len(set(STYLES)) == len(set(OBJECTS)) == 10
    assert "neon" in STYLES and "cat" in OBJECTS and PLAIN not in STYLES


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
