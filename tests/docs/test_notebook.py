"""The notebook tutorial runs, and its page and pictures are made from it."""

import os
import runpy
import subprocess
import sys

import nbformat
import pytest

from tests.docs.pages import DOCS, ROOT

SCRIPT = runpy.run_path(str(DOCS / "notebook.py"))
NOTEBOOK = SCRIPT["NOTEBOOK"]


@pytest.mark.pages
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path):
    """Its last cell holds assertions about what its classifier sees."""
    command = ["-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "--nbmake"]
    done = subprocess.run(
        [sys.executable, *command, "--nbmake-timeout=500", f"--rootdir={tmp_path}", NOTEBOOK],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_page_and_its_pictures_are_those_of_the_notebook():
    made = SCRIPT["pages"]()
    for path, content in made.items():
        assert path.read_bytes() == content, f"{path} is out of date: run `make notebook`"
    assert {path for path in made if path.suffix == ".png"} == set(SCRIPT["IMAGES"].iterdir())


def test_the_notebook_keeps_small_outputs_of_every_step():
    assert NOTEBOOK.stat().st_size < 1_000_000
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    pictures = [c for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 6
    assert not [c for c in cells for o in c.outputs if o.output_type == "error"]
