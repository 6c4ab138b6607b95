"""Take an SAE of another library into a store, and give one to it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from featurestore.card import write_card
from featurestore.errors import SAEError, TableError, UsageError
from featurestore.format import durable, schemas
from featurestore.format.activations import open_shard
from featurestore.format.records import Record
from featurestore.store import Store
from featurestore.vocabulary import IO
from sae.adding import add_sae, make_candidate
from sae.checkpoint import CONFIG, WEIGHTS, check_tensors, config_bytes, store_sae, weights_bytes
from sae.formats.calibrate import calibrate_on_
from sae.formats.hub import local_path
from sae.formats.libraries.foreign import Choice, Foreign
from sae.formats.model_card import model_card
from sae.formats.registry import WRITERS, read_checkpoint
from sae.model import SAE, SAEConfig


def import_sae(
    store: Store,
    source: str,
    name: str,
    *,
    format: str = "auto",
    hook: str | None = None,
    io: str | None = None,
    choice: Choice = Choice(),  # noqa: B008
) -> Record:
    """Read a checkpoint of another library, from a directory, a file or a hub, and commit it as
    ``saes/<name>``.

    ``hook`` and ``io`` default to what the checkpoint says, then ``io`` to what the store holds of
    the hook. An SAE that is in the store already, the same to the last bit, is returned as it is. A
    threshold that is not in the file can be found on the hook's activations (``choice.calibrate``,
    :func:`sae.formats.calibrate.calibrate_on_`).

    Raises:
        SAEError: the checkpoint is unknown, malformed or says what cannot be honoured; it does not
            fit the hook's activations; or the store has another SAE of that name.
        UsageError: nobody says which hook it belongs to.
    """
    schemas.check_name(name, "an SAE's name")
    path = local_path(source)
    found = read_checkpoint(path, format, choice)
    sae = foreign_sae(path, found, _place(store, source, found, hook=hook, io=io))
    made_by: dict[str, Any] = {"imported": found.format}
    if found.uncalibrated:
        made_by["calibrated"] = calibrate_on_(store, sae)
    files = {CONFIG: config_bytes(sae.config), WEIGHTS: weights_bytes(sae)}
    made = make_candidate(
        store, name, sae, files=files, made_by=made_by, otherwise="use another --name"
    )
    if made.files:
        add_sae(store, made)
        write_card(store)
    return made.record


def foreign_sae(path: Path, found: Foreign, place: Mapping[str, Any] = MappingProxyType({})) -> SAE:
    """Return the SAE of a checkpoint that was read from ``path``; its weights need no gradient.

    ``place``: further fields of its configuration, such as ``hook``.

    Raises:
        SAEError: the fields or the tensors do not fit each other.
    """
    try:
        config = SAEConfig(**found.fields, **place)
    except SAEError as error:
        raise SAEError(f"{path}: {error}") from error
    check_tensors(path, config, found.tensors)
    with torch.device("meta"):
        sae = SAE(config)
    sae.load_state_dict(
        {key: tensor.contiguous() for key, tensor in found.tensors.items()}, assign=True
    )
    return sae.requires_grad_(False)


def _place(
    store: Store, source: str, found: Foreign, *, hook: str | None, io: str | None
) -> dict[str, object]:
    """Return the fields that say of which activations it is, checked against those that the store
    has."""
    known = store.names("activations")
    if hook is None:
        hook = found.hook
        if hook not in known:
            says = (
                f"names {hook!r}, of which the store has no activations"
                if hook
                else "does not say which"
            )
            hooks = f" The store has {', '.join(known)}." if known else ""
            raise UsageError(f"{source} {says}: give the SAE's hook with --hook.{hooks}")
    wanted = io or found.io
    if wanted and wanted not in IO:
        raise UsageError(f"{source}: io {wanted!r} is not one of {', '.join(IO)}: give --io.")
    try:
        shard = open_shard(store.root, store.require(f"activations/{hook}")[0])
    except TableError:
        return {"hook": hook, "io": wanted or "output"}
    held = shard.metadata.get("io", "output")
    if wanted and wanted != held:
        raise SAEError(
            f"{source} was trained on the {wanted} of its module, {store.root} holds the {held} of "
            f"{hook!r}: collect with --io "
            f"{wanted}{'' if io else f', or give --io {held} if that is wrong'}."
        )
    if shard.d_in != found.fields["d_in"]:
        raise SAEError(
            f"{source} takes {found.fields['d_in']} channels, hook {hook!r} of {store.root} has "
            f"{shard.d_in}."
        )
    return {
        "hook": hook,
        "io": held,
        "height": int(shard.metadata["height"]),
        "width": int(shard.metadata["width"]),
    }


def export_sae(store: Store, name: str, format: str, out: Path) -> list[Path]:
    """Write an SAE of a store in another library's format into a new directory, with a model card;
    return the files.

    Raises:
        SAEError: the store has no such SAE, or the format cannot express it.
        UsageError: the format is not known, or ``out`` holds something.
        DiskError: the operating system refused; tried before anything is read.
    """
    if format not in WRITERS:
        raise UsageError(f"format {format!r} cannot be written. Known: {', '.join(WRITERS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists: name a new directory.")
    durable.check_file(out / "README.md")
    files = WRITERS[format](store_sae(store, name)) | {
        "README.md": model_card(store, name, format).encode()
    }
    for file, data in files.items():
        durable.write_bytes(out / file, data)
    return [out / file for file in files]
