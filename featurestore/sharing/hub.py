"""A store as a data set repository on a hub (docs/sharing.md)."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import NotAStoreError, ShareError, StoreError, TakenError
from featurestore.format import durable
from featurestore.format.gate import inside
from featurestore.format.records import FileEntry
from featurestore.maintenance.verify import verify
from featurestore.sharing.croissant import CROISSANT
from featurestore.sharing.snapshot import CARD, data_files, record_files, refuse_existing
from featurestore.store import Store
from featurestore.vocabulary import PLAIN_TABLES, TABLE_KINDS

_PATTERNS = [
    CARD,
    CROISSANT,
    *(f"{kind}/*" for kind in ("manifest", "saes", *PLAIN_TABLES, *TABLE_KINDS)),
]


def push(store: Store, repo: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a store's committed files to a data set repository, made if missing; return its
    address.

    Data files go first and the records that make them count last, so that what can be downloaded at
    any moment is a store. What is there already is not sent again: the same call goes on with an
    interrupted upload. Every file is compared with its record first, and no link is followed.

    Raises:
        DamageError: a file is not what its record says; nothing was sent.
        TakenError: another process is pushing this store.
        ShareError: nobody is logged in, the name cannot be a repository's, or the hub refuses.
    """
    from huggingface_hub import HfApi

    store.check(record for table in (*store.tables(), "saes") for record in store.records(table))
    api = HfApi()
    with _pushing(store), _hub_errors(repo):
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
            durable.remove_tree(tree)
    return str(url)


def push_page(page: Path, repo: str, private: bool = False) -> str:
    """Upload an exported page to the static Space ``<repo>-explorer``, made if missing; return its
    address.

    Raises:
        ShareError: nobody is logged in, the name cannot be a repository's, or the hub refuses.
    """
    from huggingface_hub import HfApi

    api, space = HfApi(), f"{repo}-explorer"
    with _hub_errors(space):
        url = api.create_repo(
            space, repo_type="space", space_sdk="static", private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=space,
            folder_path=page,
            repo_type="space",
            commit_message=f"The explorer of {repo}",
            delete_patterns=["data/*", "page/*"],
        )
    return str(url)


@contextlib.contextmanager
def _pushing(store: Store) -> Iterator[None]:
    claim = durable.Claim.take(store.root / ".work" / "claims" / "push")
    if claim is None:
        raise TakenError(
            f"{store.root}: another process is pushing this store just now: wait for it."
        )
    with claim:
        yield


def _linked(store: Store, name: str, files: Iterator[FileEntry]) -> Path:
    """Return a directory with a link to each file: uncommitted neighbours are left out."""
    tree = store.root / ".work" / "push" / name
    durable.remove_tree(tree)
    durable.make_directory(tree)
    for entry in files:
        durable.link_file(inside(store.root, entry.path), tree / entry.path)
    return tree


def pull(repo: str, out: Path, revision: str | None = None) -> Store:
    """Download a store from a data set repository to a new directory, and check every file against
    its record.

    Only what can be part of a store is downloaded. The same call goes on with an interrupted
    download.

    Raises:
        ShareError: there is no such repository, it holds no store or a damaged one, or ``out``
            exists.
    """
    from huggingface_hub import snapshot_download

    refuse_existing(out)
    partial = out.with_name(f".{out.name}.pulling")
    with _hub_errors(repo):
        snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            local_dir=partial,
            allow_patterns=_PATTERNS,
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    (partial / ".gitattributes").unlink(missing_ok=True)
    try:
        store = Store.open(partial)
    except NotAStoreError as error:
        raise ShareError(
            f"{repo} is no store: it has no manifest/store.json. What came is in {partial}."
        ) from error
    except StoreError as error:
        raise ShareError(
            f"{repo} holds no store that can be read ({error}). What came is in {partial}."
        ) from error
    damaged = [problem for problem in verify(store) if problem.damage]
    if damaged:
        first = damaged[0]
        raise ShareError(
            f"{repo}: {first.path} {first.what} ({len(damaged)} files in all). What came is in "
            f"{partial}: remove it and pull again."
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
        raise ShareError(
            f"{repo}: nobody is logged in: run 'hf auth login', or set HF_TOKEN."
        ) from error
    except errors.HFValidationError as error:
        raise ShareError(f"{repo!r} cannot be a repository: expected user/name.") from error
    except errors.RevisionNotFoundError as error:
        raise ShareError(f"{repo} has no such revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise ShareError(
            f"there is no data set repository {repo}, or you may not see it: 'hf auth login'?"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ShareError(
            f"{repo}: the hub cannot be used now ({reason}). The same command goes on later."
        ) from error
