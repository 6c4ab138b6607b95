"""SAEs of other libraries in a store, and out of it again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featurestore import Store
from featurestore.errors import SAEError, UsageError
from sae.checkpoint import store_sae
from sae.formats.exchange import export_sae, import_sae
from sae.formats.hub import local_path
from sae.formats.registry import read_checkpoint
from tests.builders import checkpoints as formats
from tests.builders.checkpoints import D_IN, check_same, loaded
from tests.builders.saes import HOOK, make_store, random_sae


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store", d_in=D_IN)


def test_an_imported_sae_is_one_of_the_store(store, tmp_path):
    from sae.encoding import encode

    directory = tmp_path / HOOK
    reference = formats.sparsify(directory, input_unit_norm=True)
    record = import_sae(store, str(directory), "theirs")
    sae = store_sae(store, "theirs")
    check_same(sae, reference)
    assert record.made_by["imported"] == "sparsify"
    assert (sae.config.hook, sae.config.io, sae.config.height, sae.config.width) == (
        HOOK,
        "output",
        4,
        4,
    )
    assert import_sae(store, str(directory), "theirs") == record
    encode(store, "theirs", progress=False, device="cpu")
    row = next(store.activations(HOOK)).row(0).astype(np.float32)
    z, _ = reference(torch.from_numpy(row))
    assert store.arrow("codes/theirs")["features"][0].as_py() == [
        np.flatnonzero(p).tolist() for p in z
    ]
    assert "stats.theirs" in (store.root / "README.md").read_text()
    formats.sparsify(directory, input_unit_norm=False)
    with pytest.raises(SAEError, match="has another SAE 'theirs': use another --name"):
        import_sae(store, str(directory), "theirs")


def test_an_import_with_thresholds_is_encoded(store, tmp_path):
    from sae.encoding import encode

    reference = formats.saelens(tmp_path / "s", "jumprelu", hook=HOOK)
    import_sae(store, str(tmp_path / "s"), "jump")
    encode(store, "jump", progress=False, device="cpu")
    row = next(store.activations(HOOK)).row(0).astype(np.float32)
    z, _ = reference(torch.from_numpy(row))
    found = store.arrow("codes/jump")["features"][0].as_py()
    assert found == [np.flatnonzero(p).tolist() for p in z]
    assert len({len(position) for position in found}) > 1


def test_where_an_sae_belongs_is_checked(store, tmp_path, in_process):
    directory = tmp_path / "sae"
    formats.sparsify(directory)
    with pytest.raises(
        UsageError,
        match=f"does not say which: give the SAE's hook with --hook. The store has {HOOK}",
    ):
        import_sae(store, str(directory), "a")
    other = make_store(tmp_path / "other", d_in=16)
    with pytest.raises(SAEError, match=rf"takes 12 channels, hook '{HOOK}' of .*other has 16"):
        import_sae(other, str(directory), "a", hook=HOOK)
    with pytest.raises(
        SAEError,
        match=r"was trained on the input of its module, .* holds the output of .*--io input\.",
    ):
        import_sae(store, str(directory), "a", hook=HOOK, io="input")
    formats.sdxl_unbox(tmp_path / "unbox")
    with pytest.raises(
        SAEError, match=r"trained on the difference .*or give --io output if that is wrong"
    ):
        import_sae(store, str(tmp_path / "unbox"), "a", hook=HOOK)
    import_sae(store, str(tmp_path / "unbox"), "a", hook=HOOK, io="output")
    with pytest.raises(
        UsageError, match=r"names 'h.9', of which the store has no activations: give"
    ):
        formats.saelens(tmp_path / "lens", hook="h.9")
        import_sae(store, str(tmp_path / "lens"), "b")


def test_an_sae_of_differences_goes_with_differences(tmp_path, in_process):
    formats.sdxl_unbox(tmp_path / "unbox")
    formats.sdxl_unbox(tmp_path / "steerers", steerers=True)
    differences = make_store(tmp_path / "store", d_in=D_IN, io="difference")
    for source in ("unbox", "steerers"):
        import_sae(differences, str(tmp_path / source), source, hook=HOOK)
        assert store_sae(differences, source).config.io == "difference"
    empty = Store.create(tmp_path / "empty", {"model": "m"})
    import_sae(empty, str(tmp_path / "unbox"), "unbox", hook="unet.mid_block.attentions.0")
    import_sae(empty, str(tmp_path / "steerers"), "steerers", hook="unet.mid_block.attentions.0")
    assert [store_sae(empty, name).config.io for name in ("unbox", "steerers")] == [
        "difference",
        "output",
    ]


def put(store, sae, name):
    """Commit an SAE as if it had been trained."""
    from sae.adding import add_sae, find_candidate
    from sae.checkpoint import save_sae

    save_sae(sae, store.root.parent / name)
    add_sae(store, find_candidate(store, str(store.root.parent / name), torch.device("cpu")))


@pytest.mark.parametrize("format", ["sparsify", "saelens"])
def test_what_is_exported_and_imported_is_the_same_function(format, store, tmp_path):
    sae = random_sae(D_IN, 40, 4, hook=HOOK)
    put(store, sae, "ours")
    out = tmp_path / "out"
    assert [path.parent for path in export_sae(store, "ours", format, out)] == [out, out, out]
    back = loaded(out)
    x = formats.inputs()
    assert torch.equal(back.encode_dense(x), sae.encode_dense(x))
    assert torch.equal(back(x), sae(x))
    with pytest.raises(UsageError, match="out exists: name a new directory"):
        export_sae(store, "ours", format, out)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka_batchtopk"])
def test_thresholds_are_exported_to_saelens_as_jumprelu(architecture, store, tmp_path):
    groups = {"group_sizes": (10, 30)} if architecture.startswith("matryoshka") else {}
    options = {
        "normalize_activations": "constant_norm_rescale",
        "apply_b_dec_to_input": False,
        "io": "difference",
    }
    sae = random_sae(D_IN, 40, 4, hook=HOOK, architecture=architecture, **groups, **options)
    with torch.no_grad():
        sae.threshold.uniform_(0, 1)
    put(store, sae, "ours")
    export_sae(store, "ours", "saelens", tmp_path / "out")
    assert json.loads((tmp_path / "out/cfg.json").read_text())["architecture"] == "jumprelu"
    found = read_checkpoint(tmp_path / "out")
    assert (found.hook, found.io) == (HOOK, "difference")
    x = formats.inputs()
    assert torch.equal(loaded(tmp_path / "out")(x), sae(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "jumprelu"}, "cannot express architecture = 'jumprelu', only 'topk'"),
        (
            {"normalize_activations": "layer_norm"},
            "cannot express normalize_activations = 'layer_norm', only 'none'",
        ),
        ({"apply_b_dec_to_input": False}, "cannot express apply_b_dec_to_input = False, only True"),
        ({"io": "difference"}, "cannot say that an SAE was trained on the difference"),
    ],
)
def test_what_sparsify_cannot_express_is_refused(options, message, store, tmp_path):
    put(store, random_sae(D_IN, 40, 4, hook=HOOK, **options), "ours")
    with pytest.raises(SAEError, match=message):
        export_sae(store, "ours", "sparsify", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository on a hub that is a directory here; what was asked for is kept."""
    import huggingface_hub

    root, asked = tmp_path / "repository", []
    formats.sparsify(root / HOOK)
    formats.sparsify(root / "unet.mid_block.attentions.0")
    formats.overcomplete(root / "more/sae.pt")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision=None: sorted(files)
    )

    def snapshot_download(repo, revision=None, allow_patterns=None):
        asked.append((repo, revision, sorted(allow_patterns)))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_checkpoint_on_a_hub_is_downloaded_alone(hub, store, tmp_path):
    import_sae(store, f"someone/saes/{HOOK}@v1", "theirs")
    assert hub == [("someone/saes", "v1", [f"{HOOK}/cfg.json", f"{HOOK}/sae.safetensors"])]
    assert store_sae(store, "theirs").config.hook == HOOK
    assert local_path("someone/saes/more/sae.pt").name == "sae.pt"
    assert hub[-1] == ("someone/saes", None, ["more/sae.pt"])
    with pytest.raises(
        SAEError,
        match=f"someone/saes/ holds no checkpoint .*: someone/saes/unet.mid.*, someone/saes/{HOOK}",
    ):
        local_path("someone/saes")


def test_what_is_neither_here_nor_on_a_hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def missing(self, repo, revision=None):
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", missing)
    with pytest.raises(
        SAEError, match=r"there is no some/where here, and the hub cannot be asked \(offline\)"
    ):
        local_path("some/where")
    assert local_path("./some/where") == Path("some/where")
    assert local_path("where") == Path("where")
