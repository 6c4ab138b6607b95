import json

from featurestore.saes import load_metrics
from sae.formats.exchange import export_sae
from sae.formats.model_card import model_card
from sae.training.settings import TrainSettings
from sae.training.train import train
from tests.builders.saes import HOOK, make_store


def test_a_card_says_what_the_metrics_say(tmp_path):
    store = make_store(tmp_path / "store")
    train(store, HOOK, "s", TrainSettings(k=2, expansion=2, steps=5, batch_size=32), progress=False)
    metrics = load_metrics(store, "s")
    out = tmp_path / HOOK
    assert out / "README.md" in export_sae(store, "s", "sparsify", out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{metrics['fvu']:.4f}" in card
    assert f"| latents that never fired there | {metrics['n_dead']} of " in card
    assert f'SparseCoder.load_from_disk("{HOOK}")' in card
    assert "base_model" not in card


def test_a_card_of_positions_that_are_all_equal_says_so(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store")
    train(store, HOOK, "s", TrainSettings(k=2, expansion=2, steps=5, batch_size=32), progress=False)
    metrics = load_metrics(store, "s") | {"fvu": None}
    monkeypatch.setattr("sae.formats.model_card.load_metrics", lambda store, name: metrics)
    assert "samples | undefined: they are all equal |" in model_card(store, "s", "saelens")


def test_the_base_model_is_named_where_the_run_has_one_of_a_hub(tmp_path):
    store = make_store(tmp_path / "store")
    train(store, HOOK, "s", TrainSettings(k=2, expansion=2, steps=5, batch_size=32), progress=False)
    store.run["model"] = 'owner/na"me'
    head = model_card(store, "s", "saelens").split("---")[1]
    assert f"base_model: {json.dumps(store.run['model'])}\n" in head
