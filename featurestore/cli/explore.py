"""``featurestore explore``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.options.gathering import given_options

if TYPE_CHECKING:
    from featurestore.store import Store

_EXPORTING, _SERVING = ("features", "samples", "ladder", "yes"), ("model", "port", "browser")


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--model",
    help="Draws pictures in the basket: a hub id, a pipeline's directory, or 'minicanvas'.  "
    "[default: the store's]",
)
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 8765, or any that is free]")
@click.option(
    "--no-browser", "browser", flag_value=False, default=True, help="Only print the address."
)
@click.option(
    "--export",
    "out",
    type=click.Path(path_type=Path),
    help="Instead: write the page as a folder for any static host.",
)
@click.option(
    "--features",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="With --export: best features of each concept.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="With --export: samples with their codes.",
)
@click.option(
    "--ladder",
    is_flag=True,
    help="With --export: also the pictures that were drawn in the basket, with their multipliers.",
)
@click.option("--yes", is_flag=True, help="With --export: do not ask whether the size is right.")
def explore(
    *,
    store: Path,
    model: str | None,
    port: int | None,
    browser: bool,
    out: Path | None,
    features: int,
    samples: int,
    ladder: bool,
    yes: bool,
) -> None:
    """Open STORE in a browser: its concepts, features and samples, SQL, and pictures without chosen
    features.

    Serves pages to this machine only, until Ctrl-C. Nothing is loaded from elsewhere. In the store
    nothing is changed, but what 'featurestore encode' makes is made where it is missing: the sums
    of scores, and statistics by feature.

    \b
    Example:
      featurestore explore ./store
      featurestore explore ./store --no-browser --port 9000
      featurestore explore ./store --export ./page --ladder
    """
    from featurestore.errors import UsageError
    from featurestore.explorer.server import serve
    from featurestore.store import Store

    idle = given_options(*(_EXPORTING if out is None else _SERVING))
    if idle and out is None:
        raise UsageError(f"{', '.join(idle)}: part of --export, which is not given.")
    if idle:
        raise UsageError(
            f"--export writes a folder and serves nothing: leave out {', '.join(idle)}."
        )
    opened = Store.open(store)
    if out is not None:
        export_page(opened, out, features=features, samples=samples, ladder=ladder, yes=yes)
        return
    named = model or (opened.run or {}).get("model")
    click.echo(f"{opened.root}: open this address; Ctrl-C ends it.")
    serve(opened, model=named, port=port, browser=browser, say=click.echo)
    click.echo("Closed.")


def export_page(
    store: "Store", out: Path, *, features: int, samples: int, ladder: bool, yes: bool
) -> None:
    """Write a store's page to a folder, after its size was agreed to."""
    from featurestore.explorer.export import Written, export

    def agree(written: Written) -> bool:
        click.echo(f"{written.files} files, {written.bytes / 1e6:.1f} MB → {out}")
        return yes or click.confirm("Write them?", default=True)

    written = export(
        store,
        out,
        features=features,
        samples=samples,
        ladder=ladder,
        agree=agree,
        tell=lambda text: click.echo(f"— {text}", err=True),
    )
    click.echo(
        "Nothing was written."
        if written is None
        else f"{out}: open it from any static host, such as 'python -m http.server'."
    )
