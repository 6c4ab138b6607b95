"""``featurestore explore``."""

from pathlib import Path

import click


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--model",
    help="Draws pictures in the basket: a hub id, a pipeline's directory, or 'minicanvas'.  [default: the store's]",
)
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 8765, or any that is free]")
@click.option("--no-browser", "browser", flag_value=False, default=True, help="Only print the address.")
def explore(store: Path, model: str | None, port: int | None, browser: bool) -> None:
    """Open STORE in a browser: its concepts, features and samples, SQL, and pictures without chosen features.

    Serves pages to this machine only, until Ctrl-C. Nothing is loaded from elsewhere, and nothing in the store is changed.

    \b
    Example:
      featurestore explore ./store
      featurestore explore ./store --no-browser --port 9000
    """
    from featurestore.explorer.server import serve
    from featurestore.store import Store

    opened = Store.open(store)
    named = model or (opened.run or {}).get("model")
    click.echo(f"{opened.root}: open this address; Ctrl-C ends it.")
    serve(opened, model=named, port=port, browser=browser, say=click.echo)
    click.echo("Closed.")
