"""A store as a data set repository on a hub (docs/sharing.md)."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import NotAStoreError, ShareError
from featurestore.format import durable
from featurestore.format.records import FileEntry
from featurestore.sharing.snapshot import data_files, record_files
from featurestore.store import Store
from featurestore.verify import verify


def push(store: Store, repo: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a store's committed files to a data set repository, made if missing; return its address.

    Data files go first and the records that make them count last, so that what can be downloaded at any moment is a
    store. What is there already is not sent again: the same call goes on with an interrupted upload.

    Raises:
        ShareError: nobody is logged in, the name is none, or the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(repo):
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        if revision:
            api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
        # Scores can be superseded: the only files that may have to go.
        for name, files, gone in (
            ("data", data_files(store), ["scores/*"]),
            ("records", record_files(store), ["manifest/scores/*"]),
        ):
            tree = _linked(store, name, files)
            api.upload_folder(
                repo_id=repo,
                folder_path=tree,
                repo_type="dataset",
                revision=revision,
                commit_message=f"Store {store.run_id}: {name}",
                delete_patterns=gone,
            )
            shutil.rmtree(tree)
    return str(url)


def _linked(store: Store, name: str, files: Iterator[FileEntry]) -> Path:
    """Return a directory with a link to each file: uncommitted neighbours are left out."""
    tree = store.root / ".work" / "push" / name
    shutil.rmtree(tree, ignore_errors=True)
    durable.make_directory(tree)
    for entry in files:
        link = tree / entry.path
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(store.root / entry.path, link)
        except OSError:  # a file system without hard links
            link.symlink_to((store.root / entry.path).absolute())
    return tree


def pull(repo: str, out: Path, revision: str | None = None) -> Store:
    """Download a store from a data set repository to a new directory, and check every file against its record.

    An interrupted download is gone on with by the same call.

    Raises:
        ShareError: there is no such repository, it holds no store or a damaged one, or ``out`` exists.
    """
    from huggingface_hub import snapshot_download

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShareError(f"{out} exists: name a new directory.")
    partial = out.with_name(f".{out.name}.pulling")
    with _hub_errors(repo):
        snapshot_download(repo, repo_type="dataset", revision=revision, local_dir=partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    (partial / ".gitattributes").unlink(missing_ok=True)
    try:
        store = Store.open(partial)
    except NotAStoreError as error:
        raise ShareError(f"{repo} is no store: it has no manifest/store.json. What came is in {partial}.") from error
    damaged = [problem for problem in verify(store) if problem.damage]
    if damaged:
        first = damaged[0]
        raise ShareError(
            f"{repo}: {first.path} {first.what} ({len(damaged)} files in all). What came is in {partial}: "
            f"remove it and pull again."
        )
    if out.exists():
        out.rmdir()
    durable.make_directory(out.parent)
    durable.sync_tree(partial)
    durable.rename_directory(partial, out)
    return Store(out, store.run)


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ShareError(f"{repo}: nobody is logged in: run 'hf auth login', or set HF_TOKEN.") from error
    except errors.HFValidationError as error:
        raise ShareError(f"{repo!r} cannot be a repository: expected user/name.") from error
    except errors.RevisionNotFoundError as error:
        raise ShareError(f"{repo} has no such revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise ShareError(f"there is no data set repository {repo}, or you may not see it: 'hf auth login'?") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ShareError(f"{repo}: the hub cannot be used now ({reason}). The same command goes on later.") from error
