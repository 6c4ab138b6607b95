"""``featurestore doctor``."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featurestore.doctor import Finding


@click.command()
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=".",
    help="Where stores are to lie.  [default: this directory]",
)
def doctor(store: Path) -> None:
    """Look at this installation: versions, devices, disk, what is missing and the line that mends
    it.

    Exits with 1 if something is missing without which nothing works. What only some commands need
    is listed as optional.

    \b
    Example:
      featurestore doctor
      featurestore doctor --store /data/stores
    """
    from featurestore import doctor as looking
    from featurestore.cli.terminal.text import text_table

    findings: list[Finding] = []
    for title, found in (
        ("Packages", [*looking.packages(), *looking.names()]),
        ("For some commands", list(looking.extras())),
        ("Devices", list(devices())),
        ("Disk", list(looking.disk(store))),
    ):
        click.secho(title, bold=True)
        rows = [["" if one.state == "ok" else one.state, one.what, one.found] for one in found]
        click.echo(f"{text_table(['state', 'what', 'found'], rows)}\n" if rows else "")
        findings += found
    lines = dict.fromkeys(one.mend for one in findings if one.state == "missing")
    optional = dict.fromkeys(one.mend for one in findings if one.state == "optional")
    for line in lines:
        click.echo(f"Needed:   {line}")
    for line in optional:
        click.echo(f"Optional: {line}")
    if lines:
        raise SystemExit(1)
    click.echo("Everything that is needed is there. Next: featurestore demo --quick")


def devices() -> "Iterator[Finding]":
    """Yield processors, memory and what torch can compute on."""
    from featurestore.doctor import Finding

    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "CPU",
        f"{n_cpus} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB "
        f"of memory",
    )
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "torch",
            f"cannot be imported ({error})",
            "missing",
            "pip install --force-reinstall torch",
        )
        return
    if not torch.cuda.is_available():
        lost = shutil.which("nvidia-smi") is not None
        mend = (
            "install a torch that is built for this driver's CUDA: https://pytorch.org/get-started"
            if lost
            else ""
        )
        found = (
            "nvidia-smi is here, but torch cannot use the GPU"
            if lost
            else "none: everything runs on the CPU, slowly"
        )
        yield Finding("GPU", found, "optional" if lost else "ok", mend)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", f"{about.name}, {about.total_memory / 1e9:.0f} GB")
