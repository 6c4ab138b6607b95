import os

from tests.torture import decoders


def test_no_library_ends_the_process_over_what_passes_the_gate(tmp_path):
    """A5: pyarrow's threads once did, over a page that contradicts itself."""
    decoded = decoders.decode(tmp_path, 150)
    assert decoded.broken == []
    assert decoded.tried == 150 and 15 < decoded.passed < 150


def whole(files, seed):
    return sorted(files.items())[seed]


def end_over_samples(path):
    if "samples" in path.parts:
        os._exit(7)


def test_a_library_that_ends_the_process_is_named_and_the_rest_goes_on(tmp_path):
    ending = {"pyarrow": end_over_samples}
    decoded = decoders.decode(tmp_path, 4, change=whole, libraries=ending)
    assert decoded.broken == ["2 pyarrow ended with 7"]
    assert decoded.tried == 4
