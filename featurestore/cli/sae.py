"""``featurestore train`` and ``featurestore encode``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featurestore.records import Record
    from featurestore.store import Store


@click.command()
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Directory of the store.")
@click.option("--hook", required=True, help="Module path that activations were collected at.")
@click.option("--name", required=True, help="Of the SAE in the store.")
@click.option("--k", type=click.IntRange(1), default=32, show_default=True, help="Latents active at a position.")
@click.option("--expansion", type=float, default=16, show_default=True, help="Latents = expansion · channels.")
@click.option("--steps", type=click.IntRange(1), help="[default: five times all positions, 1000 at least]")
@click.option("--batch-size", type=click.IntRange(2), default=4096, show_default=True, help="Positions a step.")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 4e-4 · √(20480 / latents)]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights and order of the data.")
@click.option(
    "--branch",
    type=click.Choice(["cond", "uncond", "both"]),
    default="cond",
    show_default=True,
    help="Which half of classifier-free guidance to learn from.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(
    store: Path,
    hook: str,
    name: str,
    k: int,
    expansion: float,
    steps: int | None,
    batch_size: int,
    lr: float | None,
    seed: int,
    branch: str,
    device: str,
    quiet: bool,
) -> None:
    """Train a TopK SAE on the activations of a hook.

    Weights, configuration and metrics (on samples held out from training) go into the store. The same command goes on
    where it was interrupted, and ends with the same weights.

    \b
    featurestore train --store ./store --hook unet.up_blocks.1.attentions.1 --k 32 --expansion 16 --name styles
    """
    from featurestore.store import Store
    from sae.train import TrainSettings
    from sae.train import train as run_train

    settings = TrainSettings(
        k=k, expansion=expansion, steps=steps, batch_size=batch_size, lr=lr, seed=seed, branch=branch
    )
    opened = Store.open(store)
    began = time.monotonic()
    record = run_train(opened, hook, name, settings, progress=not quiet, device=device)
    click.echo(_summary(opened, record, time.monotonic() - began))


def _summary(store: "Store", record: "Record", seconds: float) -> str:
    files = {Path(entry.path).name: store.root / entry.path for entry in record.files}
    config, metrics = (json.loads(files[name].read_bytes()) for name in ("config.json", "metrics.json"))
    where = "held-out samples" if metrics["held_out"] else "the training samples: there is only one"
    fvu = "undefined" if metrics["fvu"] is None else f"{metrics['fvu']:.4f}"
    return "\n".join(
        [
            f"SAE {record.shard!r}: {config['n_latents']} latents on {config['d_in']} channels, k {config['k']}",
            f"  FVU   {fvu}  ({metrics['n_positions']:,} positions of {metrics['n_samples']} samples, {where})",
            f"  L0    {metrics['l0']:.1f}",
            f"  dead  {metrics['n_dead']} of {config['n_latents']} never fired there",
            f"  time  {seconds:.0f} s",
            f"  in    {files['config.json'].parent}",
        ]
    )


@click.command()
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Directory of the store.")
@click.option("--sae", required=True, help="Name of an SAE in the store.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def encode(store: Path, sae: str, device: str, quiet: bool) -> None:
    """Encode all collected activations of an SAE's hook: which features fire, where and how strongly.

    Fills the tables codes/SAE and stats/SAE; shards that are there already are skipped.

    \b
    featurestore encode --store ./store --sae styles
    """
    from featurestore.store import Store
    from sae.encode import encode as run_encode

    opened = Store.open(store)
    n_new = run_encode(opened, sae, device=device, progress=not quiet)
    rows = {kind: sum(record.rows for record in opened.records(f"{kind}/{sae}")) for kind in ("codes", "stats")}
    n_shards = len(opened.records(f"codes/{sae}"))
    click.echo(f"{n_new} of {n_shards} shards encoded{'' if n_new == n_shards else ', the others were there already'}.")
    click.echo(f"  codes/{sae}: {rows['codes']:,} rows; stats/{sae}: {rows['stats']:,} rows in {store}")
