"""Which prompts of a list make the model draw a concept, whatever their words say?

The concept's features are the detector: each prompt is drawn, encoded while it is drawn, and ranked
by how much they fire.

python examples/audit_prompts.py demo/store neon.json suspicious.jsonl audit
"""

import argparse

from tabulate import tabulate

from collectors import CollectSettings, collect
from featurestore import Selection
from featurestore.prompts import read_prompts
from queries import sql
from sae import RunSettings, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="with the SAE that the selection was made with")
    parser.add_argument("selection")
    parser.add_argument("prompts")
    parser.add_argument("out", help="a new store for the audited prompts")
    parser.add_argument("--model", default="minicanvas")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    parser.add_argument("--seeds", type=int, default=1, help="pictures per prompt")
    args = parser.parse_args()

    selection = Selection.load(args.selection)
    model = load_model(args.model)
    run = RunSettings(n_steps=args.steps or model.steps, guidance=model.guidance)
    prompts = read_prompts(args.prompts, range(args.seeds))
    directory = f"{args.store}/saes/{selection.sae}"
    settings = CollectSettings(saes=[directory], activations=False, images=True)
    audited = collect(args.out, model, prompts, run, settings).store

    features = ", ".join(map(str, selection.features()))
    found = sql(
        audited,
        f"""select prompt,
                round(sum(coalesce(sum, 0)) / count(distinct samples.sample_id), 1) as activation
            from samples
            left join stats on samples.sample_id = stats.sample_id and feature in ({features})
            group by prompt order by activation desc, prompt""",
    )
    print(
        f"{selection.family}={selection.concept} by {len(selection.features())} features of "
        f"{selection.sae}"
    )
    print(tabulate(found.to_pylist(), headers="keys"))


if __name__ == "__main__":
    main()
