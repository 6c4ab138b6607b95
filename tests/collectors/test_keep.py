"""What is kept of a run: steps, positions, codes instead of activations; and what it would take."""

import numpy as np
import pytest
import torch

from collectors.collection import CollectSettings, collect, dry_run
from collectors.keep import Positions, kept_steps, random_positions
from collectors.planning import estimate as estimating
from featurestore.errors import DiskError, RunError, SAEError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.checkpoint import save_sae
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from sae.encoding import encode
from sae.model import SAE, SAEConfig
from tests.builders.trees import same_tree

HOOK, MID = "unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"
RUN = RunSettings(n_steps=4, guidance=3.0)
PROMPTS = [Prompt(f"picture {i}", i, {"style": "ab"[i % 2]}, i + 1) for i in range(3)]


def settings(**changes):
    return CollectSettings(
        **({"hooks": [HOOK], "shard_samples": 2, "batch_size": 2, "branch": "both"} | changes)
    )


def run(path, model, **changes):
    return collect(path, model, PROMPTS, RUN, settings(**changes), progress=False)


def rows(store, hook=HOOK):
    return {
        (int(s.sample_id[i]), int(s.step[i]), str(s.branch[i])): np.array(s.row(i))
        for s in store.activations(hook)
        for i in range(s.n_rows)
    }


@pytest.fixture(scope="module")
def everything(model, tmp_path_factory):
    return run(tmp_path_factory.mktemp("all") / "store", model).store


@pytest.fixture(scope="module")
def sae_dir(tmp_path_factory):
    torch.manual_seed(0)
    sae = SAE(SAEConfig(d_in=16, n_latents=64, k=4, hook=HOOK, height=16, width=16))
    directory = tmp_path_factory.mktemp("saes") / "given"
    save_sae(sae, directory)
    return directory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("every:2", [0, 2, 4]),
        ("5,0", [0, 5]),
        ("1-3, 5,2", [1, 2, 3, 5]),
        ("0-0", [0]),
    ],
)
def test_steps_are_named_in_four_ways(text, expected):
    assert kept_steps(text, 6) == expected


@pytest.mark.parametrize("text", ["", "every:0", "6", "0-6", "3-1", "-1", "a", "1;2"])
def test_other_steps_are_refused(text):
    with pytest.raises(UsageError, match="--timesteps"):
        kept_steps(text, 6)


def test_random_positions_follow_the_documented_formula():
    mask = 2**64 - 1

    def splitmix64(x):
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first output
    ids = [1, 2**62 + 12345]
    for step in (0, 7):
        found = random_positions(ids, step, 50, 8)
        for row, i in zip(found.tolist(), ids, strict=True):
            draws = [(splitmix64(splitmix64(splitmix64(i) ^ step) ^ p), p) for p in range(50)]
            assert row == sorted(p for _, p in sorted(draws)[:8])


def test_random_positions_are_spread_evenly():
    counts = np.bincount(random_positions(range(4000), 3, 16, 4).ravel(), minlength=16)
    assert counts.sum() == 16000 and np.abs(counts - 1000).max() < 150  # five standard deviations


@pytest.mark.parametrize("text", ["every:2", "1,3"])
def test_kept_steps_hold_what_all_steps_hold(everything, model, tmp_path, text):
    whole, part = rows(everything), rows(run(tmp_path / "store", model, timesteps=text).store)
    assert part.keys() == {key for key in whole if key[1] in kept_steps(text, 4)}
    assert all(np.array_equal(part[key], whole[key]) for key in part)


def test_random_positions_hold_what_all_positions_hold(everything, model, tmp_path):
    store = run(tmp_path / "store", model, positions="random:5").store
    whole, part = rows(everything), rows(store)
    assert verify(store, deep=True) == []
    for (i, step, branch), row in part.items():
        (chosen,) = random_positions([i], step, 256, 5)
        assert np.array_equal(row, whole[i, step, branch][chosen])
    table = store.arrow(f"activations/{HOOK}", ["sample_id", "step", "position"]).to_pylist()
    assert all(
        r["position"] == random_positions([r["sample_id"]], r["step"], 256, 5)[0].tolist()
        for r in table
    )


def test_the_mean_is_that_of_all_positions(everything, model, tmp_path):
    whole, part = rows(everything), rows(run(tmp_path / "store", model, positions="mean").store)
    assert part.keys() == whole.keys()
    for key, row in part.items():
        np.testing.assert_allclose(
            row, whole[key].astype(np.float32).mean(0, keepdims=True), atol=2e-3
        )


def test_more_positions_than_there_are_and_other_words_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match=r"random:257: the map of .* has 256 positions"):
        run(tmp_path / "store", model, positions="random:257")
    with pytest.raises(UsageError, match=r"--positions some: expected all, mean or random:N"):
        run(tmp_path / "store", model, positions="some")
    assert list(tmp_path.iterdir()) == []


def test_another_choice_for_one_store_is_refused(model, tmp_path):
    run(tmp_path / "store", model, timesteps="every:2")
    with pytest.raises(RunError, match=r"was collected with --timesteps every:2, now it is all"):
        run(tmp_path / "store", model)


def test_codes_made_while_collecting_are_those_made_later(model, tmp_path, sae_dir):
    now = run(tmp_path / "now", model, saes=[str(sae_dir)]).store
    codes = {
        p: p.read_bytes()
        for kind in ("codes", "stats")
        for p in (now.root / kind / "given").iterdir()
    }
    assert len(codes) == 4
    later = run(tmp_path / "later", model).store
    run(
        tmp_path / "later", model, saes=[str(sae_dir)]
    )  # adds the SAE and, to the samples there, its codes
    same_tree(now.root, later.root)
    for path in codes:
        path.unlink()
        (now.root / "manifest" / path.relative_to(now.root).with_suffix(".json")).unlink()
    assert encode(now, "given", "cpu", progress=False) == 2
    assert {p: p.read_bytes() for p in codes} == codes
    same_tree(now.root, later.root)


def test_codes_without_activations(model, tmp_path, sae_dir, everything):
    store = run(tmp_path / "store", model, hooks=[], saes=[str(sae_dir)], activations=False).store
    assert store.tables() == ["codes/given", "samples", "stats/given"]
    assert verify(store, deep=True) == []
    both = run(tmp_path / "both", model, saes=[str(sae_dir)]).store
    for table in ("codes/given", "stats/given"):
        assert [p.read_bytes() for p in store.files(table)] == [
            p.read_bytes() for p in both.files(table)
        ]
    again = run(tmp_path / "store", model, hooks=[], saes=["given"], activations=False)
    assert (again.n_samples, again.n_skipped) == (0, 3)


def test_saes_that_do_not_fit_are_refused(model, tmp_path, sae_dir):
    with pytest.raises(SAEError, match=r"trained on the output of its hook: use --io output"):
        run(tmp_path / "store", model, saes=[str(sae_dir)], io="input")
    with pytest.raises(SAEError, match=r"has no SAE 'gvien'"):
        run(tmp_path / "store", model, saes=["gvien"])
    with pytest.raises(SAEError, match=r"is no SAE: it has no config\.json"):
        run(tmp_path / "store", model, saes=[str(tmp_path)])
    with pytest.raises(UsageError, match="keeps codes only"):
        run(tmp_path / "store", model, activations=False)
    assert list(tmp_path.iterdir()) == []
    run(tmp_path / "store", model, saes=[str(sae_dir)])
    other = SAE(SAEConfig(d_in=16, n_latents=32, k=4, hook=HOOK, height=16, width=16))
    save_sae(other, tmp_path / "given")
    with pytest.raises(SAEError, match="has another SAE 'given'"):
        run(tmp_path / "store", model, saes=[str(tmp_path / "given")])


def test_a_dry_run_foretells_the_run_and_writes_nothing(model, tmp_path, sae_dir):
    kept = settings(hooks=[HOOK, MID], images=True, saes=[str(sae_dir)], batch_size=1)
    foretold = dry_run(tmp_path / "store", model, PROMPTS, RUN, settings=kept)
    assert list(tmp_path.iterdir()) == []
    report = collect(tmp_path / "store", model, PROMPTS, RUN, kept, progress=False)
    assert (foretold.n_samples, foretold.n_shards) == (3, 2)
    for table, (n_rows, n_bytes) in foretold.tables.items():
        records = report.store.records(table)
        found = sum(record.rows for record in records)
        assert n_rows == (pytest.approx(found, rel=0.1) if table.startswith("stats") else found), (
            table
        )
        written = sum(entry.bytes for record in records for entry in record.files)
        if table.startswith("activations"):
            assert 0.8 < n_bytes / written <= 1, table  # a file has some kilobytes of headers
    assert foretold.seconds > 0


def test_a_dry_run_foretells_all_tables_where_the_first_samples_lack_only_some(model, tmp_path):
    """A hook that is added to a store, with new prompts."""
    few = settings(batch_size=1, shard_samples=1)
    collect(tmp_path / "store", model, PROMPTS[:1], RUN, few, progress=False)
    more = settings(hooks=[HOOK, MID], batch_size=1, shard_samples=1)
    foretold = dry_run(tmp_path / "store", model, PROMPTS, RUN, settings=more)
    rows = {table: n_rows for table, (n_rows, _) in foretold.tables.items()}
    assert rows == {"samples": 2, f"activations/{HOOK}": 16, f"activations/{MID}": 24}


def test_without_prompts_there_is_nothing_to_collect(model, tmp_path):
    with pytest.raises(UsageError, match=r"^there are no prompts to collect\.$"):
        collect(tmp_path / "store", model, [], RUN, settings())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_fit_is_refused_unless_told_otherwise(model, tmp_path, monkeypatch):
    monkeypatch.setattr(estimating, "free_bytes", lambda root: 100_000)
    with pytest.raises(
        DiskError, match=r"needs about 0\.\d GB, .* has 0\.0 GB free; nothing was written"
    ):
        run(tmp_path / "store", model)
    assert list(tmp_path.iterdir()) == []
    report = collect(
        tmp_path / "store", model, PROMPTS, RUN, settings(), progress=False, ignore_space=True
    )
    assert report.n_samples == 3


def test_positions_are_parsed_once():
    assert Positions.parse("random:7") == Positions("random", 7)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_what_a_plain_hook_sees_bit_for_bit(model_dir, tmp_path, device, dtype):
    loaded, seen = load_model(str(model_dir), device, "float32"), []
    store = run(tmp_path / "store", loaded, dtype=dtype, saes=[]).store
    handle = find_module(loaded.pipe, HOOK).register_forward_hook(
        lambda m, a, out: seen.append(out[0].cpu())
    )
    generate(
        loaded,
        RUN,
        [p.prompt for p in PROMPTS[:2]],
        [p.seed for p in PROMPTS[:2]],
        output_type="latent",
    )
    handle.remove()
    found = rows(store)
    ids = store.records("samples")[0].sample_ids
    for step, tensor in enumerate(seen):
        maps = tensor.permute(0, 2, 3, 1).flatten(1, 2).to(getattr(torch, dtype)).numpy()
        for place, (branch, sample) in enumerate((b, i) for b in ("uncond", "cond") for i in ids):
            assert np.array_equal(found[sample, step, branch], maps[place])


def test_settings_that_are_not_among_the_allowed_ones_are_one_line():
    for changes, message in (
        ({"io": "both"}, "io 'both': expected one of output, input, difference"),
        ({"branch": "left"}, "branch 'left': expected one of cond, uncond, both"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16': expected one of float16, float32"),
        ({"hooks": "unet.mid_block"}, "hooks is the text 'unet.mid_block': expected a list"),
    ):
        with pytest.raises(UsageError, match=message):
            CollectSettings(**changes)
