"""A store in a directory of its own, and beside it what a stranger would like to have."""

import contextlib
import io
import shutil
from pathlib import Path

from featurestore.card import write_card
from featurestore.cli import main
from featurestore.errors import FeatureStoreError
from queries.derived.by_feature import keep_by_feature
from tests.builders.selection_files import selection
from tests.torture import flips


def command(*args: object) -> None:
    """Run the command line; raise what it does not turn into one line."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            lines = [line for line in err.getvalue().splitlines() if line.startswith("Error:")]
            if stop.code == 1 and args[0] not in ("verify", "repair") and len(lines) != 1:
                raise AssertionError(f"{args[0]} says {err.getvalue()[-200:]!r}") from stop
            if stop.code:
                raise FeatureStoreError("refused") from stop


class Home:
    """A directory beside the store with what a stranger would like to read, change or delete."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "id_rsa").write_text("secret")
        shutil.copy(next((store / "samples").glob("*.parquet")), path / "x.parquet")
        self.files = {p.name: p.read_bytes() for p in path.iterdir()}


class Chamber:
    """A store in a directory of its own, put back to what it was after each mutant."""

    def __init__(self, work: Path) -> None:
        self.work, self.root = work, work / "deep" / "store"
        self.root.parent.mkdir(parents=True)
        store = flips.make(self.root)
        for args in (
            ("score", self.root, "--sae", "s", "--by", "style"),
            ("export", self.root, "--sae", "s", "--by", "style"),
        ):
            command(*args)
        keep_by_feature(store, "s")
        write_card(store)
        self.home = Home(work / "home", self.root)
        shutil.copytree(self.home.path, work / "deep" / "home")
        self.whole = self._tree()
        self.selections = {}
        for suffix in (".json", ".csv", ".parquet", ".jsonl.zst", ".md"):
            selection(work / "store").save(work / f"selection{suffix}")
            self.selections[suffix] = (work / f"selection{suffix}").read_bytes()
        self.prompts = (
            b'{"prompt": "a cat", "seed": 3, "style": "neon"}\n{"prompt": "a dog", "style": null}\n'
        )

    def _tree(self) -> dict[str, bytes]:
        found = (p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink())
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in found}

    def restore(self) -> None:
        """Put back every file, and remove what came."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            name = path.relative_to(self.root).as_posix()
            if path.is_symlink() or (path.is_file() and self.whole.get(name) != path.read_bytes()):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for name, data in self.whole.items():
            if not (self.root / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes(data)
        for path in self.work.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
