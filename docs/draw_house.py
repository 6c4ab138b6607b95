"""Draw the house: rooms and what they import, from the code, into docs/images/house.svg and
docs/architecture.md.

Run by ``make docs``; a test compares both files with the code. Needs grimp, which import-linter
brings.
"""

import ast
import sys
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from textwrap import wrap

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("featurestore", "minicanvas", "sae", "collectors", "queries")
BEGIN, END = "<!-- rooms: written by docs/draw_house.py -->", "<!-- end of rooms -->"
# Everybody's floor: no arrows to it.
GROUND = {
    "featurestore.errors",
    "featurestore.vocabulary",
    "sae.devices",
    "sae.pickles",
    "sae.sparse",
}
WIDTH, BOX, HEIGHT, GAP, MARGIN = 1040, 186, 64, 70, 24


def rooms() -> dict[str, str]:
    """Return every room, package by package, each with the first sentence of its docstring."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("__init__.py"), key=lambda file: file.parent):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            if not text:
                sys.exit(f"{file} says nothing: its docstring is the room's line in the page.")
            name = ".".join(file.parent.relative_to(ROOT).parts)
            found[name] = " ".join(text.partition("\n\n")[0].split())
    return found


def drawn(name: str) -> bool:
    """Say whether a room is in the picture: a package, or a room of the two large ones."""
    package, *inside = name.split(".")
    return len(inside) <= (package in {"featurestore", "sae"})


def imports(names: dict[str, str]) -> dict[str, set[str]]:
    """Return what each room imports, without what follows from the rest (the transitive
    reduction)."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)

    def room(module: str) -> str:
        return next(
            n for n in sorted(names, key=len, reverse=True) if f"{module}.".startswith(f"{n}.")
        )

    uses: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules - {"featurestore.__main__", *PACKAGES}:
        for imported in graph.find_modules_directly_imported_by(module):
            if imported not in GROUND | set(PACKAGES) and room(module) != room(imported):
                uses[room(module)].add(room(imported))

    def below(name: str) -> set[str]:
        return {b for a in uses[name] for b in {a} | below(a)}

    return {
        n: {u for u in used if not any(u in below(o) for o in used - {u})}
        for n, used in uses.items()
    }


def floors(uses: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms by floor, the ground floor first: a room stands above all that it
    imports."""
    height: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in height:
            height[name] = 0
            height[name] = 1 + max((floor(used) for used in uses[name]), default=-1)
        return height[name]

    for name in uses:
        floor(name)
    levels = [[n for n in uses if height[n] == level] for level in range(max(height.values()) + 1)]
    for below, row in pairwise(levels):  # each room near what it stands on
        centre = {name: (i + 0.5) / len(below) for i, name in enumerate(below)}
        near = {n: [centre[u] for u in uses[n] if u in centre] for n in row}
        row.sort(key=lambda n: fmean(near[n]))  # exact: no matter in which order
    return levels


def picture(names: dict[str, str], uses: dict[str, set[str]]) -> str:
    """Return the house as SVG, in colours for light and dark pages."""
    levels = floors(uses)
    total = MARGIN * 2 + len(levels) * HEIGHT + (len(levels) - 1) * GAP
    place: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(levels):
        step = (WIDTH - 2 * MARGIN) / len(row)
        for i, name in enumerate(row):
            y = total - MARGIN - HEIGHT - level * (HEIGHT + GAP)
            place[name] = (MARGIN + step * (i + 0.5) - BOX / 2, y)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" role="img" '
        'aria-label="The rooms of the house and what they import" font-family="sans-serif">',
        "<style>.room{fill:#f4f1ea;stroke:#8a8477}.name{fill:#222;font-weight:600;font-size:14px}",
        ".word{fill:#555;font-size:10px}.use{stroke:#8a8477;fill:none;stroke-width:1.2}",
        "@media(prefers-color-scheme:dark){.room{fill:#2a2926;stroke:#8a8477}.name{fill:#eee}.word{fill:#bbb}}</style>",
    ]
    for name, used in uses.items():
        x, y = place[name]
        for other in sorted(used):
            u, v = place[other]
            middle = (y + HEIGHT + v) / 2
            start, end = x + BOX / 2, u + BOX / 2
            curve = f"C{start:.0f} {middle:.0f} {end:.0f} {middle:.0f} {end:.0f} {v}"
            lines.append(f'<path class="use" d="M{start:.0f} {y + HEIGHT} {curve}"/>')
    for name, (x, y) in place.items():
        lines.append(
            f'<rect class="room" x="{x:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
        )
        lines.append(
            f'<text class="name" x="{x + 10:.0f}" '
            f'y="{y + 20}">{escape(name.replace(".", "/"))}</text>'
        )
        for i, part in enumerate(wrap(names[name], 32, max_lines=3, placeholder=" …")):
            lines.append(
                f'<text class="word" x="{x + 10:.0f}" y="{y + 34 + 11 * i}">{escape(part)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def tree(names: dict[str, str]) -> str:
    """Return the rooms as a Markdown list, a line each, rooms of rooms further in."""
    return "\n".join(
        f"{'    ' * name.count('.')}- `{name.replace('.', '/')}/`: {text}"
        for name, text in names.items()
    )


def pages() -> dict[Path, str]:
    """Return what the files should hold."""
    names = rooms()
    large = {name: text for name, text in names.items() if drawn(name)}
    page = ROOT / "docs" / "architecture.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{tree(names)}\n{END}{after}"
    return {page: text, ROOT / "docs" / "images" / "house.svg": picture(large, imports(large))}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
