"""Which concepts an evaluation removes, and what their settings are chosen by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered, given_options
from featurestore.cli.options.kinds import Numbers, Seeds
from featurestore.cli.options.prompts import PromptOptions
from featurestore.cli.options.single import ablate_option

if TYPE_CHECKING:
    from featurestore.selection import Selection
    from sae.evaluation.attack import AttackSettings
    from sae.evaluation.protocols import Search
    from sae.evaluation.removals import Request
    from sae.evaluation.together import Toward


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What the options of :func:`target_options` say: which selections are removed."""

    selections: tuple[Path, ...]
    store: Path | None
    saes: tuple[str, ...]
    concepts: tuple[str, ...]
    family: str | None
    top: list[int]
    towards: tuple[str, ...]
    pulls: list[float] | None
    toward_top: int

    def read(self) -> "list[list[Selection]]":
        """Return the files' selections, those of one concept together, or each that a store has for
        the options."""
        from featurestore.errors import UsageError
        from featurestore.selection import Selection
        from featurestore.store import Store
        from queries.selections import select_all, split_concept

        if bool(self.selections) == (self.store is not None):
            raise UsageError(
                "give either --ablate FILE, or --store with --sae and --concept or --by."
            )
        if self.store is None:
            if idle := given_options("saes", "concepts", "family", "top", "toward_top"):
                raise UsageError(
                    f"{', '.join(idle)}: for --store; an --ablate file says what it selects."
                )
            groups: dict[tuple[str, str], list[Selection]] = {}
            for one in map(Selection.load, self.selections):
                groups.setdefault((one.family, one.concept), []).append(one)
            return list(groups.values())
        if not self.saes or bool(self.concepts) == bool(self.family):
            raise UsageError(
                "--store needs --sae, and either --concept FAMILY=CONCEPT or --by FAMILY."
            )
        wanted: dict[str, list[str]] = {}
        for name, concept in map(split_concept, self.concepts):
            wanted.setdefault(name, []).append(concept)
        opened = Store.open(self.store)
        found: list[list[Selection]] = []
        for name in sorted(wanted) or [str(self.family)]:
            for together in self.saes:
                for n in self.top:
                    parts = [
                        select_all(opened, sae, name, wanted.get(name), top=n)
                        for sae in together.split("+")
                    ]
                    found += map(list, zip(*parts, strict=True))
        return found

    def toward(
        self,
        wanted: "Sequence[Request]",
        protocol: str,
        *,
        searched: bool,
        otherwise: Sequence[float] = (),
    ) -> "Toward":
        """Return what concepts are edited towards: those that are named, or the first of each
        family of the store that is kept.

        Nothing where neither ``--toward`` nor ``--pull`` is given, except in a search: of concepts
        that are removed together always, of one at a time with the pulls ``otherwise``.

        Raises:
            UsageError: how strongly is given, but not towards what.
        """
        from featurestore.errors import UsageError
        from featurestore.selection import Selection
        from featurestore.store import Store
        from queries.selections import select_kept, split_concept
        from sae.evaluation.together import PULLS, Toward

        together = protocol != "each"
        pulls = tuple(self.pulls or (() if together else otherwise) or PULLS)
        given = bool(self.towards or self.pulls)
        if not (given or (searched and (together or otherwise))):
            return Toward()
        if self.store is None:
            if self.pulls and not self.towards:
                raise UsageError(
                    "--pull is how strongly to edit towards what is kept: give --toward FILE."
                )
            return Toward([Selection.load(path) for path in self.towards], pulls)
        kept = select_kept(
            Store.open(self.store),
            list(dict.fromkeys("+".join(self.saes).split("+"))),
            {(r.family, r.concept) for r in wanted},
            named=[split_concept(text, "--toward") for text in self.towards],
            top=self.toward_top,
            together=together,
        )
        return Toward(kept, pulls)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which selections are removed; they arrive as ``targets``."""
    options = [
        ablate_option,
        click.option(
            "--store", type=click.Path(path_type=Path), help="Instead: a store, to select from."
        ),
        click.option(
            "--sae",
            "saes",
            multiple=True,
            help="With --store: an SAE's name, or several as one removal, such as styles+objects; "
            "several of these options are searched.",
        ),
        click.option(
            "--concept",
            "concepts",
            multiple=True,
            help="With --store: FAMILY=CONCEPT; may be repeated.",
        ),
        click.option("--by", "family", help="With --store, instead: every concept of this family."),
        click.option(
            "--top",
            type=Numbers(int),
            default="2",
            show_default=True,
            help="With --store: features per step; several are searched.",
        ),
        click.option(
            "--toward",
            "towards",
            multiple=True,
            help="What is removed is edited towards this kept FAMILY=CONCEPT with --store, else its "
            "selection file.  [default: the first kept concept of the store, in a search of "
            "several concepts together or with --hold]",
        ),
        click.option(
            "--pull",
            "pulls",
            type=Numbers(float),
            help="How many times the kept features' mean; several are searched, beside none.  "
            "[default: 0.5,0.25]",
        ),
        click.option(
            "--toward-top",
            type=click.IntRange(1),
            default=32,
            show_default=True,
            help="With --store: features per step of the concept that is kept.",
        ),
    ]
    return gathered(command, "targets", TargetOptions, options)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the options of :func:`search_options` say: what settings are chosen by."""

    search_judges: tuple[str, ...]
    search_seeds: list[int] | None
    search_others: int
    search_attack: int | None
    search_attack_rounds: int

    def load(self, prompts: PromptOptions, device: str) -> "Search | None":
        """Return the search's judge and prompts; None if there is no search."""
        from featurestore.errors import UsageError
        from sae.evaluation.judge import load_judge
        from sae.evaluation.protocols import Search

        if bool(self.search_judges) != bool(self.search_seeds):
            raise UsageError("a search needs both --search-judge and --search-seeds.")
        if not self.search_seeds:
            if self.search_attack:
                raise UsageError(
                    "--search-attack is part of a search: give --search-judge and --search-seeds, "
                    "too."
                )
            return None
        judge = load_judge(self.search_judges, device)
        return Search(judge, prompts.file(self.search_seeds).prompts, self.search_others)

    def attack(self) -> "AttackSettings | None":
        """Return how settings are attacked while they are searched; None: not at all."""
        from sae.evaluation.attack import AttackSettings

        return AttackSettings(rounds=self.search_attack_rounds) if self.search_attack else None


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what settings are chosen by; they arrive as ``search``."""
    options = [
        click.option(
            "--search-judge",
            "search_judges",
            multiple=True,
            help="What settings are chosen by, and balanced by where several concepts are removed "
            "together.",
        ),
        click.option(
            "--search-seeds",
            type=Seeds(),
            help="Seeds of the search; none of those that are reported.",
        ),
        click.option(
            "--search-others",
            type=click.IntRange(1),
            default=40,
            show_default=True,
            help="Pictures per setting that do not ask for the target.",
        ),
        click.option(
            "--search-attack",
            type=click.IntRange(1),
            help="Attack so many pictures of a concept with tokens, and take the best setting of "
            "which none comes back.",
        ),
        click.option(
            "--search-attack-rounds",
            type=click.IntRange(1),
            default=50,
            show_default=True,
            help="Of 40 iterations each, as attack has them.",
        ),
    ]
    return gathered(command, "search", SearchOptions, options)
