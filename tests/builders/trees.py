"""Compare directories."""

import filecmp
from pathlib import Path


def same_tree(a: Path, b: Path) -> None:
    """Assert that two stores hold the same files with the same bytes; unfinished work does not
    count."""
    comparison = filecmp.dircmp(a, b, ignore=[".work"])
    files = [f for f in comparison.common_files if (a / f).read_bytes() != (b / f).read_bytes()]
    assert not (comparison.left_only or comparison.right_only or files), (
        comparison.left_only,
        comparison.right_only,
        files,
    )
    for name in comparison.common_dirs:
        same_tree(a / name, b / name)
