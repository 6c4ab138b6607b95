"""What do two SAEs of one hook have in common? Pair their latents by decoder direction.

python examples/compare_saes.py demo/store styles other --concept style=neon
"""

import argparse

import torch
from tabulate import tabulate

from featurestore import Store
from queries import select
from sae import store_sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("sae")
    parser.add_argument("other")
    parser.add_argument("--concept", required=True, help="family=concept, such as style=neon")
    parser.add_argument("--top", type=int, default=3, help="features of the concept per step")
    args = parser.parse_args()
    family, _, concept = args.concept.partition("=")

    store = Store.open(args.store)
    one, other = store_sae(store, args.sae), store_sae(store, args.other)
    if one.config.d_in != other.config.d_in:
        parser.error(f"{args.sae} has d_in {one.config.d_in}, {args.other} has {other.config.d_in}")
    ours, theirs = (torch.nn.functional.normalize(sae.W_dec.detach()) for sae in (one, other))
    cosine, nearest = (ours @ theirs.T).max(dim=1)  # of each latent of the first, in the second
    quarters = torch.quantile(cosine, torch.tensor([0.25, 0.5, 0.75])).tolist()
    print("cosine to the nearest latent, quartiles: " + ", ".join(f"{q:.2f}" for q in quarters))

    features, there = (
        select(store, name, family, concept, top=args.top).features()
        for name in (args.sae, args.other)
    )
    rows = [[i, int(nearest[i]), float(cosine[i]), int(nearest[i]) in there] for i in features]
    header = [args.sae, f"nearest in {args.other}", "cosine", f"selected for {concept} there"]
    print(tabulate(rows, headers=header, floatfmt=".2f"))


if __name__ == "__main__":
    main()
