"""Encode a store on a Ray cluster: each task takes every n-th shard, writes it whole, commits it.

Nothing is sent but paths: the machines of the cluster share the store's directory. A task that dies
is retried, and finds what is committed. Needs `pip install 'featurestore[ray]'`.

python examples/encode_on_ray.py demo/store styles --tasks 2
"""

import argparse
from pathlib import Path

import ray

from featurestore import Store
from queries.derived.keep import keep_derived
from sae import encode


@ray.remote(max_retries=3)
def share(store: str, sae: str, rank: int, world_size: int) -> int:
    """Encode the shards of one rank; return how many were new."""
    return encode(Store.open(store), sae, progress=False, rank=rank, world_size=world_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("sae")
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each task")
    parser.add_argument("--address", help="of a cluster; default: one on this machine")
    args = parser.parse_args()

    ray.init(args.address, include_dashboard=False)
    store = str(Path(args.store).resolve())
    task = share.options(num_gpus=args.gpus)
    done = ray.get([task.remote(store, args.sae, rank, args.tasks) for rank in range(args.tasks)])
    keep_derived(Store.open(store), args.sae)  # from which questions are answered
    for rank, n_new in enumerate(done):
        print(f"task {rank}: {n_new} shards")


if __name__ == "__main__":
    main()
