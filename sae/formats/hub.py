"""Checkpoints on a hub: ``user/name``, ``user/name/directory`` or ``user/name/file.pt``, with
``@revision`` if one is wanted."""

import re
from pathlib import Path, PurePosixPath

from featurestore.errors import SAEError
from sae.formats.libraries.overcomplete import SUFFIXES
from sae.formats.registry import FORMATS

_SOURCE = re.compile(
    r"(?P<repo>\w[\w.-]*/[\w.-]+)(?:/(?P<inner>[^@]+))?(?:@(?P<revision>[\w./-]+))?"
)


def local_path(source: str) -> Path:
    """Return where a checkpoint lies: a local path as it is, else what was downloaded of a
    repository.

    Only the files of the one checkpoint are downloaded.

    Raises:
        SAEError: there is neither such a path nor such a repository, or it holds no checkpoint
            there.
    """
    path = Path(source)
    match = _SOURCE.fullmatch(source)
    if path.exists() or path.is_absolute() or match is None:
        return path
    from huggingface_hub import HfApi, errors, snapshot_download

    repo, inner, revision = match["repo"], (match["inner"] or "").strip("/"), match["revision"]
    try:
        files = HfApi().list_repo_files(repo, revision=revision)
        wanted = _wanted(repo, inner, files)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted)) / inner
    except errors.RepositoryNotFoundError as error:
        raise SAEError(
            f"there is no {source} here, and no repository {repo} on the hub that you may see."
        ) from error
    except (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise SAEError(
            f"there is no {source} here, and the hub cannot be asked ({reason})."
        ) from error


def _wanted(repo: str, inner: str, files: list[str]) -> list[str]:
    """Return the files of the checkpoint at ``inner``."""
    if inner in files and inner.endswith(SUFFIXES):
        return [inner]
    there = [file for file in files if _parent(file) == inner]
    names = {PurePosixPath(file).name for file in there}
    if any(known.files and set(known.files) <= names for known in FORMATS.values()):
        known = {name for known in FORMATS.values() for name in known.files}
        return [file for file in there if PurePosixPath(file).name in known]
    places = {_parent(file) for file in files}
    holding = sorted(place for place in places if place and _is_checkpoint(place, files))
    listed = ", ".join(f"{repo}/{place}" for place in holding[:8]) or "none"
    raise SAEError(
        f"{repo}/{inner} holds no checkpoint of a known format. Those in the repository: {listed}."
    )


def _is_checkpoint(place: str, files: list[str]) -> bool:
    names = {PurePosixPath(file).name for file in files if _parent(file) == place}
    return any(known.files and set(known.files) <= names for known in FORMATS.values())


def _parent(file: str) -> str:
    return file.rpartition("/")[0]
