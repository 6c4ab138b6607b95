"""Write the table of pipelines of docs/pipelines.md anew, from what the tests of the families hold.

Run it after those tests passed: ``python docs/list_pipelines.py``.
"""

from pathlib import Path

from tests.builders.families import table

PAGE = Path(__file__).parent / "pipelines.md"


def main() -> None:
    """Replace the table by its header's first line."""
    lines = table()
    blocks = PAGE.read_text(encoding="utf-8").split("\n\n")
    (at,) = (i for i, block in enumerate(blocks) if block.startswith(lines[0]))
    blocks[at] = "\n".join(lines)
    PAGE.write_text("\n\n".join(blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
