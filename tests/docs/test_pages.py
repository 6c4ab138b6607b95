"""Every page says whom it is for, and every code block on it runs or says why it does not."""

import re
import shlex
import shutil

import click
import datasets
import pytest
import torch

from featurestore.cli import cli
from tests.docs.pages import DOCS, PAGES, ROOT, blocks, go_through, programs

ELSEWHERE = {
    "docs/api.md",  # tests/docs/test_api.py
    "docs/tutorials/find-and-remove.md",  # its notebook: tests/docs/test_notebook.py
    "docs/own_pipeline.md",  # tests/sae/diffusion/reading/test_calls.py
}
RUN = [page for page in PAGES if programs(page) and str(page) not in ELSEWHERE]
HERE = [page for page in RUN if page.parent.name != "tutorials"]  # test_tutorials.py has those
COMMAND = re.compile(r"^(?:\$ )?(?:featurestore|make|pip|python|git|hf|torchrun|source) ", re.M)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_run_or_says_why_not(page):
    fences = len(re.findall(r"^ *```", (ROOT / page).read_text(encoding="utf-8"), re.M))
    assert fences == 2 * len(blocks(page)), f"{page}: a fence is not closed, or indented otherwise"
    for one in blocks(page):
        assert one.why or one.language in ("sh", "python", "text"), (
            f"{one.place}: ```{one.language}: tests run `sh` and `python`; `text` is no program; "
            "of another say why it is not run: <!-- not run: WHY --> in the line above"
        )
        assert one.why or one.language != "text" or not COMMAND.search(one.text), (
            f"{one.place}: a command in a block of text"
        )


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_the_first_paragraph_says_whom_the_page_is_for_and_what_they_can_do_after_it(page):
    first = page.read_text(encoding="utf-8").split("\n\n")[1]
    assert re.match("For (those|newcomers|people) ", first), first
    assert re.search("[Aa]fter\\s+this\\s+page", first), first


def commands(text: str) -> list[list[str]]:
    """The arguments of every featurestore command in a block."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^ *(?:\S.* )?featurestore +(\w[^\n]*)$", joined, re.M)
    return [shlex.split(line.split(" | ")[0], comments=True) for line in found if '"' not in line]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=str)
def test_no_block_names_a_command_or_an_option_that_does_not_exist(page):
    """Also those that are not run."""
    for one in blocks(page):
        for words in commands(one.text) if one.language == "sh" else []:
            command, name = cli, "featurestore"
            while isinstance(command, click.Group):
                name, *words = words
                found = command.get_command(click.Context(command), name)
                assert found is not None, f"{one.place}: there is no command {name!r}"
                command = found
            parent = click.Context(cli, **cli.context_settings)
            command.make_parser(click.Context(command, parent=parent)).parse_args(args=words)


@pytest.fixture(scope="module")
def house(shell, after_the_first, tmp_path_factory):
    """A directory with what the how-to pages speak of: stores, prompts, selections."""
    directory = tmp_path_factory.mktemp("house")
    for name in ("store", "after", "before", "demo/store"):
        shutil.copytree(after_the_first / "mystore", directory / name)
    lines = [
        f'{{"prompt": "An image of {thing} in {style} style.", "style": "{style}", '
        f'"object": "{thing}"}}\n'
        for style, thing in (("neon", "cat"), ("sketch", "house"))
    ]
    (directory / "prompts.jsonl").write_text("".join(lines))
    labels = (after_the_first / "prompts.csv").read_text()
    (directory / "corrected.csv").write_text(labels.replace("mosaic,tree", "mosaic,oak"))
    shell(
        """
        for concept in neon sketch; do
            featurestore export store --sae styles --concept style=$concept --top 2 -o $concept.json
        done
        featurestore export store --sae styles --concept object=cat --top 2 -o cat.json
        cp neon.json demo/neon.json
        """,
        directory,
    )
    return directory


@pytest.mark.pages
@pytest.mark.timeout(600)  # the first of them also makes what all begin with
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mlcroissant
@pytest.mark.parametrize("page", HERE, ids=str)
def test_a_page_runs_word_for_word(page, house, shell, tmp_path, monkeypatch):
    there = tmp_path / "there"
    shutil.copytree(house, there)
    monkeypatch.chdir(there)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    go_through(page, shell, there)
