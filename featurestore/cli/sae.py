"""``featurestore encode`` and ``sae``."""

from pathlib import Path

import click

from featurestore.cli.train import described
from featurestore.vocabulary import CHECKPOINT_FORMATS, IO, WRITTEN_FORMATS


@click.command()
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Directory of the store."
)
@click.option("--sae", required=True, help="Name of an SAE in the store.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option(
    "--mask-from",
    "words",
    multiple=True,
    metavar="WORD",
    help="Keep only the codes where this word of the prompt looks; several times for any of "
    "several.",
)
@click.option("--name", help="Of what is kept with --mask-from, an SAE of its own in the store.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def encode(
    *, store: Path, sae: str, device: str, words: tuple[str, ...], name: str | None, quiet: bool
) -> None:
    """Encode all collected activations of an SAE's hook: which features fire, where and how
    strongly.

    Fills the tables codes/SAE and stats/SAE; shards that are there already are skipped. Then
    sums/SAE and totals/SAE, the sums over the samples of each concept and of each family, from
    which scores are computed, feature_masks/SAE, feature_samples/SAE and feature_steps/SAE, from
    which questions about one feature are answered, and candidates/SAE and step_candidates/SAE, the
    sums of what scores best.

    With --mask-from, after the SAE's whole maps were encoded: the same SAE under --name, whose
    codes and statistics are those of the positions where a word looks (collect --attention). Score
    and export with that name. Samples whose prompt has none of the words are left out.

    \b
    Example:
      featurestore encode --store ./store --sae styles
      featurestore encode --store ./store --sae styles --mask-from cat --mask-from dog --name animals
    """
    from featurestore.cli.terminal.hints import after_encoding
    from featurestore.errors import UsageError
    from featurestore.store import Store
    from queries.derived.keep import keep_derived
    from sae.encoding import encode as run_encode
    from sae.masking import encode_where

    opened = Store.open(store)
    if bool(words) != bool(name):
        raise UsageError("--mask-from and --name belong together: give both.")
    if name:
        n_new = encode_where(opened, sae, words, name, progress=not quiet)
        sae = name
    else:
        n_new = run_encode(opened, sae, device=device, progress=not quiet)
    keep_derived(opened, sae, progress=not quiet)
    rows = {
        kind: sum(record.rows for record in opened.records(f"{kind}/{sae}"))
        for kind in ("codes", "stats")
    }
    n_shards = len(opened.records(f"codes/{sae}"))
    click.echo(
        f"{n_new} of {n_shards} shards "
        f"encoded{'' if n_new == n_shards else ', the others were there already'}."
    )
    click.echo(
        f"  codes/{sae}: {rows['codes']:,} rows; stats/{sae}: {rows['stats']:,} rows in {store}"
    )
    after_encoding(opened, sae)


@click.group()
def sae() -> None:
    """Bring SAEs of other libraries into a store, give a store's SAEs to them, and turn a TopK SAE
    into one with a threshold.

    \b
    Example:
      featurestore sae import ./unet.up_blocks.1.attentions.1 --store ./store --name styles
      featurestore sae export ./store styles --format saelens --out ./styles
    """


@sae.command("import")
@click.argument("path")
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Directory of the store."
)
@click.option("--name", required=True, help="Of the SAE in the store.")
@click.option(
    "--format",
    type=click.Choice(["auto", *CHECKPOINT_FORMATS]),
    default="auto",
    show_default=True,
    help="Of which library; auto: as the names of the files say.",
)
@click.option("--hook", help="Module path that it belongs to.  [default: as the checkpoint says]")
@click.option("--io", type=click.Choice(IO), help="What of the module it was trained on.")
@click.option(
    "--k", type=click.IntRange(1), help="Latents active per position, where the file does not say."
)
@click.option("--threshold", type=float, help="Of a BatchTopK SAE, where the file does not say.")
@click.option(
    "--calibrate", is_flag=True, help="Find it on the store's activations, as training does."
)
@click.option(
    "--architecture",
    type=click.Choice(["topk", "relu"]),
    help="Serve a BatchTopK SAE as TopK: another function. Or what a file of overcomplete is that "
    "does not say it: relu.",
)
def import_(
    *,
    path: str,
    store: Path,
    name: str,
    format: str,
    hook: str | None,
    io: str | None,
    k: int | None,
    threshold: float | None,
    calibrate: bool,
    architecture: str | None,
) -> None:
    """Read an SAE that another library trained: a directory, a file, or user/name/directory on a
    hub.

    The SAE in the store is the same function: what would change it is honoured or refused by name
    (docs/saes.md). Pickles are never run.

    \b
    Example:
      featurestore sae import someone/saes/unet.up_blocks.1.attentions.1 --store ./store --name theirs
      featurestore sae import ./sae.pt --k 32 --hook unet.mid_block.attentions.0 --store ./store --name mid
      featurestore sae import ./batch.pt --k 32 --calibrate --hook unet.mid_block.attentions.0 --store ./store --name batch
    """
    from featurestore.cli.terminal.hints import say_next
    from featurestore.saes import load_config
    from featurestore.store import Store
    from sae.formats.exchange import import_sae
    from sae.formats.libraries.foreign import Choice

    opened = Store.open(store)
    import_sae(
        opened,
        path,
        name,
        format=format,
        hook=hook,
        io=io,
        choice=Choice(architecture, k, threshold, calibrate),
    )
    config = load_config(opened, name)
    click.echo(f"SAE {name!r}: {described(config)}")
    click.echo(f"  hook  {config['hook']}, its {config['io']}")
    click.echo(f"  in    {store / 'saes' / name}")
    say_next("encode", "--store", store, "--sae", name)


@sae.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--name", "new_name", required=True, help="Of the new SAE in the store.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
def calibrate(store: Path, name: str, new_name: str, device: str) -> None:
    """Give a TopK SAE a threshold in the place of its k, as a new SAE of the store.

    The threshold is the one that k latents per position exceed on average, on samples that training
    left out. Ablating with such an SAE computes the selected latents and no others. It is another
    function: encode with it and select features anew.

    \b
    Example:
      featurestore sae calibrate ./store styles --name styles_threshold
    """
    from featurestore.cli.terminal.hints import say_next
    from featurestore.store import Store
    from sae.devices import pick_device
    from sae.training.outcome.calibration import calibrate as run

    made = run(Store.open(store), name, new_name, pick_device(device))
    where = "held-out samples" if made.held_out else "the training samples"
    click.echo(f"SAE {new_name!r}: {name!r} with a threshold of {made.threshold:.4g}")
    for title, found in (("k", made.before), ("threshold", made.after)):
        fvu = "undefined" if found.fvu is None else f"{found.fvu:.4f}"
        click.echo(f"  by {title:9}  FVU {fvu}, L0 {found.l0:.2f}, dead {found.n_dead:,}")
    click.echo(
        f"  at a position {made.gained:.2f} latents fire that did not, {made.lost:.2f} no longer do"
    )
    click.echo(f"  on {made.after.n_positions:,} positions of {where}")
    click.echo(f"  in {store / 'saes' / new_name}")
    say_next("encode", "--store", store, "--sae", new_name)


@sae.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("name")
@click.option(
    "--format", required=True, type=click.Choice(WRITTEN_FORMATS), help="Of which library."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New directory.")
def export(store: Path, name: str, format: str, out: Path) -> None:
    """Write an SAE of a store so that another library loads it.

    \b
    Example:
      featurestore sae export ./store styles --format sparsify --out ./unet.up_blocks.1.attentions.1
    """
    from featurestore.cli.terminal.hints import say_next
    from featurestore.store import Store
    from sae.formats.exchange import export_sae

    for file in export_sae(Store.open(store), name, format, out):
        click.echo(file)
    say_next("sae", "import", out, "--store", "STORE", "--name", name)
