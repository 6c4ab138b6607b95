"""The tutorials run word for word, each in an empty directory; so do the examples, small."""

import shutil

import datasets
import pytest

from tests.builders.trees import same_tree
from tests.docs.conftest import FIRST
from tests.docs.pages import PAGES, ROOT, go_through, programs

pytestmark = pytest.mark.timeout(600)  # the first of them also makes what all begin with
NOTEBOOK = "docs/tutorials/find-and-remove.md"  # test_notebook.py runs it
OTHERS = [
    page for page in PAGES if page.parent.name == "tutorials" and str(page) not in (FIRST, NOTEBOOK)
]


@pytest.mark.pages
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_a_tutorial_runs_word_for_word(page, shell, after_the_first, tmp_path, monkeypatch):
    monkeypatch.chdir(after_the_first)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    go_through(page, shell, after_the_first)


@pytest.mark.pages
def test_the_first_tutorial_takes_the_concept_out(after_the_first):
    before, after = (list((after_the_first / name).glob("*.png")) for name in ("before", "after"))
    assert len(before) == len(after) == 1
    assert before[0].read_bytes() != after[0].read_bytes()


@pytest.fixture(scope="module")
def first_store(shell, tmp_path_factory):
    """What the first tutorial leaves, with two steps of everything."""
    directory = tmp_path_factory.mktemp("examples")
    shell(
        programs(FIRST)[0].text
        + """
        featurestore collect --model minicanvas --prompts prompts.csv --steps 2 --shard-samples 3 --store store \\
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


@pytest.mark.pages
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


@pytest.mark.ray
def test_the_example_for_ray_encodes_what_one_process_does(shell, first_store, tmp_path):
    pytest.importorskip("ray", reason="pip install 'featurestore[ray]'")
    one, several = (
        shutil.copytree(first_store / "store", tmp_path / name) for name in ("one", "several")
    )
    for store in (one, several):
        for kind in ("codes", "stats", "sums", "totals"):
            for root in (store, store / "manifest"):
                shutil.rmtree(root / kind / "styles")
    shell("featurestore encode --store one --sae styles", tmp_path)
    said = shell(f"python {ROOT}/examples/encode_on_ray.py several styles --tasks 2", tmp_path)
    n = len(list((one / "codes/styles").iterdir()))
    assert f"task 0: {-(-n // 2)} shards" in said and f"task 1: {n // 2} shards" in said
    same_tree(several, one)


def test_the_examples_are_short_and_all_listed():
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"`{path.name}`" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
