import pytest

from featurestore.errors import PromptsError
from featurestore.prompts import read_prompts


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_every_line_is_taken_once_a_seed_or_with_its_own(tmp_path):
    path = write(tmp_path, '{"prompt": "a cat", "style": "neon"}', "", '{"prompt": "雪", "seed": 7, "object": null}')
    prompts = read_prompts(path, [0, 1])
    assert [(p.prompt, p.seed, p.line) for p in prompts] == [("a cat", 0, 1), ("a cat", 1, 1), ("雪", 7, 3)]
    assert prompts[0].labels == {"object": None, "style": "neon"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', "line 2: expected an object with a text 'prompt'"),
        ('{"style": "x"}', "line 2: expected an object with a text 'prompt'"),
        ('{"prompt": "b", "seed": -1}', "line 2: 'seed' is -1, expected a whole number"),
        ('{"prompt": "b", "seed": true}', "line 2: 'seed' is True"),
        ('{"prompt": "b", "Style": "x"}', "line 2: 'Style' cannot be a label: use lower-case"),
        ('{"prompt": "b", "timestep": "x"}', "line 2: 'timestep' cannot be a label: it is a column"),
        ('{"prompt": "b", "style": 3}', "line 2: label 'style' is 3, expected a text or null"),
        ('{"prompt": "a"}', "line 2: the same prompt and seed 0 as line 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    with pytest.raises(PromptsError, match=message):
        read_prompts(write(tmp_path, '{"prompt": "a"}', line))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptsError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(PromptsError, match="is empty"):
        read_prompts(write(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(PromptsError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")
