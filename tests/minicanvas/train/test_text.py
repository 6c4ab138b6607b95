import json
import os
import subprocess
import sys

from minicanvas.pipeline import load_pipeline
from minicanvas.train.text import learn_merges, merge, new_tokenizer

PRINT_VOCABULARY = (
    "import json; from minicanvas.train.text import new_tokenizer; "
    "print(json.dumps(new_tokenizer().get_vocab()))"
)


def test_the_vocabulary_is_the_same_in_every_process():
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    run = subprocess.run(
        [sys.executable, "-c", PRINT_VOCABULARY],
        env={"PYTHONHASHSEED": other},
        capture_output=True,
        check=True,
    )
    assert json.loads(run.stdout) == new_tokenizer().get_vocab()


def test_the_shipped_vocabulary_is_the_one_learnt():
    assert load_pipeline().tokenizer.get_vocab() == new_tokenizer().get_vocab()


def test_the_commonest_pair_is_merged_first_and_the_first_of_equals():
    assert learn_merges(["ab ab cd", "ef"]) == [("a", "b</w>"), ("c", "d</w>"), ("e", "f</w>")]
    assert learn_merges(["aaa"]) == [("a", "a"), ("aa", "a</w>")]


def test_pairs_are_joined_from_the_left():
    assert merge(["a", "a", "a", "b", "a", "a"], ("a", "a")) == ["aa", "a", "b", "aa"]
    assert merge(["a"], ("a", "a")) == ["a"]
    assert merge(["a", "b"], ("a", "b")) == ["ab"]
