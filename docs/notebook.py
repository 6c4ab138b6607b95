"""The notebook tutorial: run it, and make its page. ``make notebook`` runs this.

``python docs/notebook.py`` runs the notebook, keeps its outputs, and writes
``tutorials/find-and-remove.md`` with its pictures; a test compares page and notebook.
"""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).parent / "tutorials" / "find-and-remove.ipynb"
PAGE = NOTEBOOK.with_suffix(".md")
IMAGES = Path(__file__).parent / "images" / NOTEBOOK.stem
MARK = "<!-- Made from the notebook of the same name by `make notebook`; its tests run that. -->"


def run() -> None:
    """Run the notebook and keep what it shows."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # stderr has progress and what libraries say about notebooks
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                _shrink(output.get("data", {}))
    nbformat.write(notebook, NOTEBOOK)


def _shrink(data: dict[str, Any]) -> None:
    """Make a figure as wide as the notebook shows it."""
    if "image/png" not in data:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    if picture.width > 900:
        picture.thumbnail((720, 720), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    data["image/png"] = base64.b64encode(sink.getvalue()).decode()


def pages() -> dict[Path, bytes]:
    """Return what the page and its pictures should hold."""
    import nbformat

    found: dict[Path, bytes] = {}
    parts = []
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts.append(_shown(output, found))
    first, *rest = parts
    text = "\n\n".join([first, MARK, *rest]) + "\n"
    return {PAGE: text.encode(), **found}


def _shown(output: Any, found: dict[Path, bytes]) -> str:
    """Return an output as Markdown; a picture is added to the files."""
    if output.output_type == "stream":
        assert output.name == "stdout", output.text
        return f"```text\n{output.text.rstrip()}\n```"
    if "image/png" in output.data:
        path = IMAGES / f"{len(found) + 1}.png"
        found[path] = base64.b64decode(output.data["image/png"])
        return f"![{path.stem}](../images/{IMAGES.name}/{path.name})"
    return f"```text\n{output.data['text/plain']}\n```"


if __name__ == "__main__":
    run()
    for path, content in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
