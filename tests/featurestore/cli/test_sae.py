from pathlib import Path

import pytest
from click.testing import CliRunner

from featurestore.cli import cli, main
from tests.builders import checkpoints as formats
from tests.builders.saes import HOOK, make_store

SMALL = [
    "--k",
    "3",
    "--expansion",
    "2",
    "--steps",
    "5",
    "--batch-size",
    "16",
    "--device",
    "cpu",
    "--quiet",
]


@pytest.fixture
def root(tmp_path):
    make_store(tmp_path / "store")
    return str(tmp_path / "store")


def run(*args):
    result = CliRunner().invoke(cli, args, standalone_mode=False)
    return result.output, result.exception


def train(root, *args, name="styles", hook=HOOK):
    return ["train", "--store", root, "--hook", hook, "--name", name, *SMALL, *args]


def test_train_then_encode_then_again(root):
    output, error = run(*train(root))
    assert error is None
    lines = output.splitlines()
    assert lines[0] == "SAE 'styles': 32 latents on 16 channels, k 3"
    assert "positions of" in lines[1] and "held-out samples" in lines[1]
    assert [line.split()[0] for line in lines[1:]] == ["FVU", "L0", "dead", "time", "plot", "in"]
    assert lines[-1].endswith("saes/styles")
    output, error = run("encode", "--store", root, "--sae", "styles", "--device", "cpu", "--quiet")
    assert error is None
    assert output.startswith("3 of 3 shards encoded.\n  codes/styles: 18 rows; stats/styles:")
    assert run("encode", "--store", root, "--sae", "styles", "--device", "cpu", "--quiet")[
        0
    ].startswith("0 of 3 shards encoded, the others were there already.")
    assert run(*train(root))[0].splitlines()[0] == lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--k", "33"],
            "k = 33 is more than the 32 latents: use a smaller --k or a larger --expansion.",
        ),
        (["--expansion", "0"], "expansion is 0.0, it must be positive."),
        (["--lr", "-1"], "lr is -1.0, it must be positive."),
        (
            {"hook": "unet.up_blocks.1.attentions.2"},
            "Did you mean 'unet.up_blocks.1.attentions.1'?",
        ),
        ({"name": "a/b"}, "an SAE's name 'a/b' cannot be a name in a store"),
        (
            ["--name", "second"],
            "1 --hook and 2 different --name: give each hook a name of its own.",
        ),
        (["--batch-size", "100000"], "use a smaller --batch-size, or collect more."),
        (["--branch", "uncond"], "has no rows of branch 'uncond'."),
    ],
)
def test_mistakes_are_one_line_and_exit_status_1(root, capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        main(train(root, **args) if isinstance(args, dict) else train(root, *args))
    error = capsys.readouterr().err
    assert exit_.value.code == 1
    assert error.startswith("Error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "args", [["--k", "0"], ["--steps", "0"], ["--batch-size", "1"], ["--seed", "-1"]]
)
def test_numbers_out_of_range_are_usage_errors(root, capsys, args):
    with pytest.raises(SystemExit) as exit_:
        main(train(root, **args) if isinstance(args, dict) else train(root, *args))
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


def refused(capsys, *args):
    """The one line that a mistake prints, with exit status 1."""
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert exit_.value.code == 1
    assert error.startswith("Error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu", "matryoshka_batchtopk"])
def test_other_architectures(root, architecture):
    groups = ["--group-sizes", "8,24"] if architecture.startswith("matryoshka") else []
    output, error = run(*train(root, "--architecture", architecture, *groups))
    assert error is None
    assert output.splitlines()[0] == f"SAE 'styles': {architecture}, 32 latents on 16 channels, k 3"
    assert (
        run("encode", "--store", root, "--sae", "styles", "--device", "cpu", "--quiet")[1] is None
    )


def test_group_sizes_that_are_none_or_do_not_fit(root, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(train(root, "--group-sizes", "8;24"))
    assert exit_.value.code == 2
    assert "is no list of sizes: expected something like 32,96,384." in capsys.readouterr().err
    assert "group sizes are for matryoshka_batchtopk" in refused(
        capsys, *train(root, "--group-sizes", "8,24")
    )


def test_export_then_import_again(root, tmp_path, capsys):
    run(*train(root))
    out = tmp_path / HOOK
    output, error = run("sae", "export", root, "styles", "--format", "sparsify", "--out", str(out))
    assert error is None
    assert output.split() == [f"{out}/{n}" for n in ("cfg.json", "sae.safetensors", "README.md")]
    output, error = run("sae", "import", str(out), "--store", root, "--name", "again")
    assert error is None
    assert output.splitlines() == [
        "SAE 'again': 32 latents on 16 channels, k 3",
        f"  hook  {HOOK}, its output",
        f"  in    {root}/saes/again",
    ]
    weights = [
        (Path(root) / f"saes/{name}/sae.safetensors").read_bytes() for name in ("styles", "again")
    ]
    assert weights[0] == weights[1]
    assert "exists: name a new directory" in refused(
        capsys, "sae", "export", root, "styles", "--format", "saelens", "--out", out
    )


def test_mistakes_of_import_are_one_line(root, tmp_path, capsys):
    place = ["--store", root, "--name", "theirs"]
    assert "there is no file or directory /absent." in refused(
        capsys, "sae", "import", "/absent", *place
    )
    (tmp_path / "empty").mkdir()
    error = refused(capsys, "sae", "import", tmp_path / "empty", *place)
    assert (
        "is no checkpoint of a known format: found nothing; expected cfg.json and sae.safetensors "
        "(sparsify)" in error
    )
    formats.sparsify(tmp_path / "wide")
    error = refused(capsys, "sae", "import", tmp_path / "wide", *place, "--hook", HOOK)
    assert f"takes 12 channels, hook '{HOOK}' of {root} has 16." in error
    assert not (Path(root) / "saes/theirs").exists()


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_of_the_group_has_examples(command):
    output, error = run("sae", command, "--help")
    assert error is None
    assert f"featurestore sae {command} " in output
