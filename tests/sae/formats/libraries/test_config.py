"""Configurations of other libraries, changed field by field: the same function, or one line."""

import json
import os

import pytest

from featurestore.errors import SAEError
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import read_checkpoint
from tests.builders import checkpoints as formats

HOSTILE = [
    10**12, -1, 0, 2.5, "30", "", "x" * 5000, "a\nb", True, None, [], [1], {}, {"k": 1}, 1e308, [[[]]],
]  # fmt: skip
WRITERS = {
    "sparsify": (formats.sparsify, "cfg.json"),
    "saelens": (formats.saelens, "cfg.json"),
    "saelens 5": (formats.saelens_5, "cfg.json"),
    "dictionary_learning": (lambda d: formats.dictionary_learning(d, "BatchTopKSAE"), "config.json"),
    "sdxl-unbox": (formats.sdxl_unbox, "config.json"),
}  # fmt: skip


def places(body):
    """Yield every object in a configuration, and each key of it."""
    for key, value in list(body.items()):
        yield body, key
        if isinstance(value, dict):
            yield from places(value)


@pytest.mark.parametrize("library", WRITERS)
def test_any_value_of_any_field_is_the_same_function_or_one_line(library, tmp_path, in_process):
    """A2: a configuration with what nobody expects in a field: refused in one line that names the
    file, or of no consequence."""
    write, name = WRITERS[library]
    write(tmp_path)
    path = tmp_path / name
    whole = json.loads(path.read_text())
    sound = read_checkpoint(tmp_path).fields
    refused = tried = 0
    for number in range(len(list(places(whole)))):
        for value in HOSTILE:
            body = json.loads(json.dumps(whole))
            holder, key = list(places(body))[number]
            holder[key] = value
            path.write_text(json.dumps(body))
            tried += 1
            try:
                found = read_checkpoint(tmp_path)
            except SAEError as error:
                said = str(error)
                assert str(tmp_path) in said and "\n" not in said and len(said) < 600, said
                refused += 1
            else:
                assert found.fields["d_in"] == sound["d_in"], (key, value)
                assert found.fields["n_latents"] == sound["n_latents"], (key, value)
                assert type(found.fields["k"]) is int and isinstance(found.hook, str), (key, value)
    assert refused > tried / 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d_in", 10**12, "has d_in = 1000000000000, expected an integer of at least 1 and at most"),
        ("k", -4, "has k = -4, expected an integer of at least 1 and at most 67,108,864"),
        ("k", "4", "has k = '4', expected an integer of at least 1"),
        ("num_latents", 2**40, "has num_latents = 1099511627776, expected an integer of at least 0"),
        ("signed", "yes", "has signed = 'yes', expected true or false"),
        ("activation", "swish", "has activation = 'swish', which cannot be honoured: only 'topk'"),
        ("activation", 7, "has activation = 7, expected a text of at most 200 characters"),
        ("transcode", float("nan"), "is no JSON: NaN is not a number that JSON knows"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_what_was_expected(field, value, message, tmp_path):
    """A2: import configurations are checked, not only parsed."""
    formats.sparsify(tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SAEError) as error:
        read_checkpoint(tmp_path)
    assert f"{path} {message}" in str(error.value)


def test_a_large_configuration_and_a_pipe_are_one_line(tmp_path):
    """A7: bounded before it is read, and no pipe is waited for."""
    formats.sparsify(tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(path.read_text() + " " * 2**20)
    with pytest.raises(SAEError, match=r"cfg\.json cannot be read: it has 1,048,\d+ bytes"):
        read_checkpoint(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SAEError, match=r"cfg\.json cannot be read: it is not a regular file"):
        read_checkpoint(tmp_path, "sparsify")


def test_a_number_in_a_pickle_that_no_tensor_holds_is_one_line(tmp_path):
    """A2: an integer beyond 64 bits beside the tensors of a torch file."""
    import torch

    formats.dictionary_learning(tmp_path, "AutoEncoderTopK")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save(state | {"k": 2**70}, tmp_path / "ae.pt")
    with pytest.raises(SAEError, match="holds 'k', expected only named tensors"):
        read_checkpoint(tmp_path, choice=Choice())
