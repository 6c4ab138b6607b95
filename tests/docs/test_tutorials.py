"""The tutorials run word for word, each in an empty directory; so do the examples, small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "docs" / "tutorials" / "first-store.md"
OTHERS = sorted(set((ROOT / "docs" / "tutorials").glob("*.md")) - {FIRST})
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The page's blocks of shell and Python that are not marked as not run, in their order."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        (one["language"], one["text"])
        for one in found
        if not one["why"] and one["language"] in ("sh", "python")
    ]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A shell whose ``featurestore`` and ``python`` are those of the tests."""
    binaries = tmp_path_factory.mktemp("bin")
    for name, module in (("featurestore", "-m featurestore"), ("python", "")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (binaries / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(script: str, directory: Path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def go_through(page, shell, directory):
    """Run a page's blocks."""
    assert blocks(page)
    for language, text in blocks(page):
        shell(text if language == "sh" else f"python - <<'END'\n{text}\nEND", directory)


@pytest.fixture(scope="module")
def after_the_first(shell, tmp_path_factory):
    """The directory that the first tutorial leaves."""
    directory = tmp_path_factory.mktemp("tutorial")
    go_through(FIRST, shell, directory)
    return directory


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_a_tutorial_runs_word_for_word(page, shell, after_the_first):
    go_through(page, shell, after_the_first)


def test_the_first_tutorial_takes_the_concept_out(after_the_first):
    before, after = (list((after_the_first / name).glob("*.png")) for name in ("before", "after"))
    assert len(before) == len(after) == 1
    assert before[0].read_bytes() != after[0].read_bytes()


@pytest.fixture(scope="module")
def first_store(shell, tmp_path_factory):
    """What the first tutorial leaves, with two steps of everything."""
    directory = tmp_path_factory.mktemp("examples")
    shell(
        blocks(FIRST)[0][1]
        + """
        featurestore collect --model minicanvas --prompts prompts.csv --steps 2 --store store \\
            --hook unet.up_blocks.1.attentions.1
        for sae in styles other; do
            featurestore train --store store --hook unet.up_blocks.1.attentions.1 --name $sae \\
                --k 8 --expansion 2 --steps 20 --batch-size 128 --seed ${#sae}
            featurestore encode --store store --sae $sae
        done
        featurestore export store --sae styles --concept style=neon --top 2 -o neon.json
        """,
        directory,
    )
    return directory


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("sweep_hooks", "prompts.csv sweep --concept style=neon --hooks " "'unet.up_blocks.*.attentions.1' --steps 2 "
         "--train-steps 5 --batch-size 64", "unet.up_blocks.1.attentions.1"),
        ("compare_saes", "store styles other --concept style=neon", "nearest in other"),
        ("audit_prompts", "store neon.json prompts.csv audit --steps 2", "An image of cat in neon " "style."),
        ("track_feature", "store styles 0 prompts.csv track minicanvas minicanvas --steps 2", "mosaic"),
        ("steer", "neon.json 'An image of cat.' steered.png --strengths 0,5 --steps 2", ""),
    ],
)  # fmt: skip
def test_an_example_answers(script, arguments, said, shell, first_store):
    assert said in shell(f"python {ROOT}/examples/{script}.py {arguments}", first_store)


def test_the_examples_are_short_and_all_listed():
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"`{path.name}`" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
