import pytest
from click.testing import CliRunner

from featurestore.cli import cli, main
from tests.sae.helpers import HOOK, make_store

SMALL = ["--k", "3", "--expansion", "2", "--steps", "5", "--batch-size", "16", "--device", "cpu", "--quiet"]


@pytest.fixture
def root(tmp_path):
    make_store(tmp_path / "store")
    return str(tmp_path / "store")


def run(*args):
    result = CliRunner().invoke(cli, args, standalone_mode=False)
    return result.output, result.exception


def train(root, *args, name="styles"):
    return ["train", "--store", root, "--hook", HOOK, "--name", name, *SMALL, *args]


def test_train_then_encode_then_again(root):
    output, error = run(*train(root))
    assert error is None
    lines = output.splitlines()
    assert lines[0] == "SAE 'styles': 32 latents on 16 channels, k 3"
    assert "positions of" in lines[1] and "held-out samples" in lines[1]
    assert [line.split()[0] for line in lines[1:]] == ["FVU", "L0", "dead", "time", "in"]
    assert lines[-1].endswith("saes/styles")
    output, error = run("encode", "--store", root, "--sae", "styles", "--device", "cpu", "--quiet")
    assert error is None
    assert output.startswith("3 of 3 shards encoded.\n  codes/styles: 18 rows; stats/styles:")
    assert run("encode", "--store", root, "--sae", "styles", "--device", "cpu", "--quiet")[0].startswith(
        "0 of 3 shards encoded, the others were there already."
    )
    assert run(*train(root))[0].splitlines()[0] == lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--k", "33"], "k = 33 is more than the 32 latents: use a smaller --k or a larger --expansion."),
        (["--expansion", "0"], "expansion is 0.0, it must be positive."),
        (["--lr", "-1"], "lr is -1.0, it must be positive."),
        (["--hook", "unet.up_blocks.1.attentions.2"], "Did you mean 'unet.up_blocks.1.attentions.1'?"),
        (["--name", "a/b"], "an SAE's name 'a/b' cannot be a name in a store"),
        (["--batch-size", "100000"], "use a smaller --batch-size, or collect more."),
        (["--branch", "uncond"], "has no rows of branch 'uncond'."),
    ],
)
def test_mistakes_are_one_line_and_exit_status_1(root, capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        main(train(root, *args))
    error = capsys.readouterr().err
    assert exit_.value.code == 1
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("args", [["--k", "0"], ["--steps", "0"], ["--batch-size", "1"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_usage_errors(root, capsys, args):
    with pytest.raises(SystemExit) as exit_:
        main(train(root, *args))
    assert exit_.value.code == 2
    assert "is not in the range" in capsys.readouterr().err


def test_an_unknown_sae_offers_near_names(root, capsys):
    run(*train(root))
    with pytest.raises(SystemExit) as exit_:
        main(["encode", "--store", root, "--sae", "stiles"])
    assert exit_.value.code == 1
    assert "Did you mean 'styles'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "encode"])
def test_help_has_an_example(command):
    output, error = run(command, "--help")
    assert error is None
    assert f"featurestore {command} --store ./store" in output
