"""Slow answers are kept on disk for the next start: never for another state, never a damaged one."""

import pyarrow as pa
import pytest

from featurestore.explorer import kept
from featurestore.explorer.kept import Kept
from featurestore.format.verified import why_not

TABLE = pa.table({"feature": [1, 2], "score": [0.5, None]})


@pytest.fixture
def store_root(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "SLOW_SECONDS", 0)
    why_not.cache_clear()
    yield tmp_path / "store"
    why_not.cache_clear()


def counted(answer=TABLE):
    calls = []

    def compute():
        calls.append(1)
        return answer

    return compute, calls


def test_an_answer_is_computed_once_for_a_state_a_question_and_its_parameters(store_root):
    compute, calls = counted()
    asked = [("a", "best_scores", {"top": 6}), ("b", "best_scores", {"top": 6}),
             ("a", "overlap", {"top": 6}), ("a", "best_scores", {"top": 7})]  # fmt: skip
    for _ in range(2):
        for state, name, given in asked:
            assert Kept(store_root).get(state, name, given, compute).equals(TABLE)
    assert len(calls) == len(asked)


def test_a_quick_answer_and_a_large_one_are_not_kept(store_root, monkeypatch, tmp_path):
    compute, calls = counted()
    monkeypatch.setattr(kept, "SLOW_SECONDS", 60)
    for _ in range(2):
        Kept(store_root).get("a", "q", {}, compute)
    monkeypatch.setattr(kept, "SLOW_SECONDS", 0)
    monkeypatch.setattr(kept, "LARGEST", 1)
    Kept(store_root).get("a", "q", {}, compute)
    assert len(calls) == 3


def test_a_damaged_answer_is_computed_again(store_root, tmp_path):
    compute, calls = counted()
    Kept(store_root).get("a", "q", {}, compute)
    (file,) = (tmp_path / "cache" / "answers").iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    assert Kept(store_root).get("a", "q", {}, compute).equals(TABLE)
    file.write_bytes(b"")
    assert Kept(store_root).get("a", "q", {}, compute).equals(TABLE)
    assert Kept(store_root).get("a", "q", {}, compute).equals(TABLE)
    assert len(calls) == 3


def test_the_oldest_answers_make_room(store_root, monkeypatch, tmp_path):
    compute, _ = counted()
    Kept(store_root).get("a", "first", {}, compute)
    (first,) = (tmp_path / "cache" / "answers").iterdir()
    monkeypatch.setattr(kept, "LIMIT", first.stat().st_size)
    Kept(store_root).get("a", "second", {}, compute)
    assert [path.name for path in (tmp_path / "cache" / "answers").iterdir()] != [first.name]
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 1


def test_a_directory_that_others_can_write_to_is_not_used(store_root, tmp_path):
    compute, calls = counted()
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    for _ in range(2):
        assert Kept(store_root).get("a", "q", {}, compute).equals(TABLE)
    assert len(calls) == 2
