"""``featurestore pack``, ``unpack``, ``push`` and ``pull``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.terminal.hints import say_next

if TYPE_CHECKING:
    from featurestore.store import Store


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
def pack(store: Path, bundle: Path) -> None:
    """Write STORE as one checksummed file, BUNDLE (.tar.zst).

    Only what is committed goes in. The same store gives the same bytes.

    \b
    Example:
      featurestore pack ./store store.tar.zst
    """
    from tqdm import tqdm

    from featurestore.cli.terminal.text import human_bytes
    from featurestore.sharing.bundle import pack as run_pack
    from featurestore.sharing.snapshot import data_files
    from featurestore.store import Store

    opened = Store.open(store)
    total = sum(entry.bytes for entry in data_files(opened))
    with tqdm(total=total, desc="pack", unit="B", unit_scale=True, disable=None) as bar:
        written = run_pack(opened, bundle, bar.update)
    click.echo(
        f"{bundle}: {human_bytes(written.bytes)} for {human_bytes(total)} of data, SHA-256 "
        f"{written.sha256}"
    )
    say_next("unpack", bundle, "STORE")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
def unpack(bundle: Path, store: Path) -> None:
    """Write the store in BUNDLE to the new directory STORE, whole or not at all.

    Every file is checked against the checksum it was packed with.

    \b
    Example:
      featurestore unpack store.tar.zst ./store
    """
    from tqdm import tqdm

    from featurestore.sharing.bundle import unpack as run_unpack

    with tqdm(desc="unpack", unit="B", unit_scale=True, disable=None) as bar:
        opened = run_unpack(bundle, store, bar.update)
    click.echo(f"{store}: run {opened.run_id}, {len(opened.tables())} tables.")
    say_next("info", store)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a repository that only you see.")
@click.option("--revision", help="Branch, made if missing.  [default: main]")
@click.option(
    "--with-explorer",
    is_flag=True,
    help="Also a page to look at it: the static Space REPO-explorer.",
)
def push(
    *, store: Path, repo: str, private: bool, revision: str | None, with_explorer: bool
) -> None:
    """Upload STORE to the data set repository REPO (user/name) of a hub; made if missing.

    Only what is committed is sent, data first, and nothing twice: the same command goes on after an
    interruption. Everybody then reads it with load_dataset("user/name", "<table>").

    \b
    Example:
      featurestore push ./store user/name
      featurestore push ./store user/name --with-explorer
    """
    from featurestore.sharing.hub import push as run_push
    from featurestore.store import Store

    opened = Store.open(store)
    click.echo(run_push(opened, repo, private, revision))
    if with_explorer:
        click.echo(_push_page(opened, repo, private))
    say_next("pull", repo, "STORE", *(("--revision", revision) if revision else ()))


def _push_page(store: "Store", repo: str, private: bool) -> str:
    """Write a store's page to a temporary folder and upload it."""
    from tempfile import TemporaryDirectory

    from featurestore.cli.terminal.text import human_bytes
    from featurestore.explorer.export import export
    from featurestore.sharing.hub import push_page

    with TemporaryDirectory() as directory:
        page = Path(directory, "page")
        written = export(store, page)
        if written is not None:
            click.echo(f"the page: {written.files} files, {human_bytes(written.bytes)}")
        return push_page(page, repo, private)


@click.command()
@click.argument("repo")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit.  [default: main]")
def pull(repo: str, store: Path, revision: str | None) -> None:
    """Download a store from REPO (user/name) to the new directory STORE and check every file.

    \b
    Example:
      featurestore pull user/name ./store
    """
    from featurestore.sharing.hub import pull as run_pull

    opened = run_pull(repo, store, revision)
    click.echo(
        f"{store}: run {opened.run_id}, {len(opened.tables())} tables, every file as its record "
        f"says."
    )
    say_next("info", store)
