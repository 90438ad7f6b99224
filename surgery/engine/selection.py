"""The choice of passes and graphs for a partial run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.base.errors import UserError
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.step import Recipe, S, Step
from surgery.rewrite.contract import Pass


@dataclass(frozen=True)
class Selection:
    """Which steps of which recipes run.

    Attributes:
        only: passes that run; all others are left out.
        skip: passes that are left out.
        until: the pass after which work on a graph stops.
        graph: the only graph to work on; None for all.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    until: str | None = None
    graph: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names.

        Raises:
            UserError: no pass or graph of that name, or a pass that the graph's recipe lacks.
        """
        if self.graph is not None:
            known("--graph", self.graph, RECIPES)
        options = (("--only", self.only), ("--skip", self.skip), ("--until", (self.until,)))
        for option, words in options:
            for word in filter(None, words):
                known(option, word, passes())
                if not any(word in names(RECIPES[graph]) for graph in self.candidates):
                    raise UserError(
                        f"{option} {word}: the {self.graph} graph has no such step. "
                        f"It has {', '.join(dict.fromkeys(names(RECIPES[self.graph or ''])))}."
                    )

    @property
    def whole(self) -> bool:
        """Whether everything runs, so that a package can be written."""
        return self == Selection()

    @property
    def candidates(self) -> list[str]:
        """The graph that was chosen, or all."""
        return [self.graph] if self.graph is not None else list(RECIPES)

    @property
    def graphs(self) -> list[str]:
        """Graphs to work on: with `--only` or `--until`, those whose recipe has such a pass."""
        wanted = {*self.only, *filter(None, (self.until,))}
        return [
            name
            for name in self.candidates
            if not wanted or wanted.intersection(names(RECIPES[name]))
        ]

    def steps(self, recipe: Recipe[S]) -> Iterator[tuple[Step[S], bool]]:
        """The steps to run, each with whether an earlier step was skipped."""
        gap = False
        for step in recipe:
            name = step.work.name
            if name in self.skip or (self.only and name not in self.only):
                gap = True
                continue
            yield step, gap
            if name == self.until:
                return


EVERYTHING = Selection()
"""The run that makes a package."""


def names(recipe: Recipe[Any]) -> list[str]:
    """The names of a recipe's passes, in order."""
    return [step.work.name for step in recipe]


def passes(recipes: Mapping[str, Recipe[Any]] = RECIPES) -> dict[str, type[Pass]]:
    """Every pass of some recipes by name, in the order of their first appearance."""
    return {step.work.name: step.work for recipe in recipes.values() for step in recipe}


def known(option: str, word: str, words: Mapping[str, object] | Iterable[str]) -> str:
    """Return a word that is known.

    Raises:
        UserError: the word is unknown; the message names the closest one.
    """
    if word not in words:
        close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.4)
        advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(words)}."
        raise UserError(f"{option} {word}: no such name; {advice}")
    return word
