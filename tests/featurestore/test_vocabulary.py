"""The closed lists are those of the code that they are about."""

import typing

from featurestore import vocabulary
from featurestore.cli import COMMANDS, cli
from sae.diffusion.pipelines import DTYPES
from sae.formats.registry import FORMATS, WRITERS
from sae.variants import VARIANTS


def test_the_lists_name_what_there_is():
    assert tuple(VARIANTS) == vocabulary.ARCHITECTURES
    assert tuple(FORMATS) == vocabulary.CHECKPOINT_FORMATS
    assert tuple(WRITERS) == vocabulary.WRITTEN_FORMATS
    assert tuple(DTYPES) == vocabulary.MODEL_DTYPES
    assert typing.get_args(vocabulary.Branch) == vocabulary.BRANCHES
    assert {b for branches in vocabulary.BRANCH_CHOICES.values() for b in branches} == set(
        vocabulary.BRANCHES
    )


def options_of(command):
    return {option.name: getattr(option.type, "choices", None) for option in command.params}


def test_options_offer_exactly_the_words_that_the_libraries_take():
    commands = {name: options_of(cli.get_command(None, name)) for name in COMMANDS}
    assert commands["collect"]["io"] == commands["train-live"]["io"] == vocabulary.IO
    assert tuple(commands["collect"]["branch"]) == tuple(vocabulary.BRANCH_CHOICES)
    assert tuple(commands["generate"]["kinds"]) == tuple(vocabulary.INTERVENTIONS)
    assert (
        tuple(commands["generate"]["mode"])
        == tuple(commands["evaluate"]["mode"])
        == tuple(vocabulary.MODES)
    )
    assert commands["evaluate"]["protocol"] == vocabulary.PROTOCOLS
    assert commands["train"]["architecture"] == vocabulary.ARCHITECTURES
