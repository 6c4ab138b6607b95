"""At which hook does a concept show best? Train a small SAE at each, and compare.

python examples/sweep_hooks.py demo/prompts.jsonl sweep --concept style=neon
"""

import argparse

from tabulate import tabulate

from collectors import CollectSettings, collect
from featurestore.prompts import read_prompts
from featurestore.saes import load_metrics
from queries import select
from sae import RunSettings, TrainSettings, encode, load_model, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts")
    parser.add_argument("store", help="a new directory, or one that an interrupted run left")
    parser.add_argument("--concept", required=True, help="family=concept, such as style=neon")
    parser.add_argument("--model", default="minicanvas")
    parser.add_argument("--hooks", default="unet.*.attentions.*")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=1024, help="positions")
    args = parser.parse_args()
    family, _, concept = args.concept.partition("=")

    model = load_model(args.model)
    run = RunSettings(n_steps=args.steps or model.steps, guidance=model.guidance)
    prompts = read_prompts(args.prompts)
    store = collect(args.store, model, prompts, run, CollectSettings(hooks=[args.hooks])).store

    rows = []
    for hook in store.names("activations"):
        name = hook.replace(".", "-")
        settings = TrainSettings(
            k=16, expansion=8, steps=args.train_steps, batch_size=args.batch_size
        )
        train(store, hook, name, settings)
        metrics = load_metrics(store, name)
        encode(store, name)
        selection = select(store, name, family, concept, top=1)
        scores = selection.rows["score"].to_pylist()
        rows.append(
            [hook, metrics["fvu"], max(scores, default=0), sum(scores) / max(len(scores), 1)]
        )
    rows.sort(key=lambda row: -row[2])
    header = ["hook", "FVU", f"best score of {concept}", "mean of the best per step"]
    print(tabulate(rows, headers=header, floatfmt=".3f"))


if __name__ == "__main__":
    main()
