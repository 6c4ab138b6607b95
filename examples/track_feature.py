"""What becomes of a feature from one checkpoint of a model to the next?

Every checkpoint draws the same prompts from the same noise; one SAE, trained on the first, encodes
them all.

python examples/track_feature.py demo/store styles 634 demo/prompts.jsonl track CHECKPOINT
[CHECKPOINT ...]
"""

import argparse
from pathlib import Path

from tabulate import tabulate

from collectors import CollectSettings, collect
from featurestore.prompts import read_prompts
from queries import sql
from sae import RunSettings, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("sae")
    parser.add_argument("feature", type=int)
    parser.add_argument("prompts")
    parser.add_argument("out", help="a directory for one store per checkpoint")
    parser.add_argument("checkpoints", nargs="+", help="models: directories or hub ids")
    parser.add_argument("--by", default="style", help="a label column")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    args = parser.parse_args()

    settings = CollectSettings(saes=[f"{args.store}/saes/{args.sae}"], activations=False)
    rows: dict[str, list[float]] = {}
    for number, checkpoint in enumerate(args.checkpoints):
        model = load_model(checkpoint)
        run = RunSettings(n_steps=args.steps or model.steps, guidance=model.guidance)
        prompts = read_prompts(args.prompts)
        store = collect(Path(args.out) / str(number), model, prompts, run, settings).store
        found = sql(
            store,
            f"""select {args.by} as concept, coalesce(sum(sum) filter (feature = {args.feature}), 0)
                       / count(distinct stats.sample_id) as activation
                from samples join stats using (sample_id) group by {args.by}""",
        )
        for row in found.to_pylist():
            rows.setdefault(row["concept"], [0.0] * len(args.checkpoints))[number] = row[
                "activation"
            ]
    table = sorted(
        ([concept, *values] for concept, values in rows.items()), key=lambda row: -row[1]
    )
    print(f"activation of feature {args.feature} per picture")
    print(tabulate(table, headers=[args.by, *args.checkpoints], floatfmt=".1f"))


if __name__ == "__main__":
    main()
