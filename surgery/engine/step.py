"""A step of a recipe as data: a pass, its arguments, the expected number of sites, when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from surgery.engine.options import Settings
from surgery.rewrite.contract import Pass

S = TypeVar("S", bound=Settings)


def always(settings: Settings) -> bool:
    """The condition of a step that is part of every run."""
    return True


def no_arguments(settings: Settings) -> Mapping[str, Any]:
    """The arguments of a pass that takes none."""
    return {}


@dataclass(frozen=True)
class Step(Generic[S]):
    """A pass in a recipe.

    Attributes:
        work: the class of the pass.
        args: its keyword arguments, from the settings of the run.
        expect: exact number of sites that it must find; None for any number.
        when: whether the step is part of a run with these settings.
    """

    work: type[Pass]
    args: Callable[[S], Mapping[str, Any]] = no_arguments
    expect: Callable[[S], int | None] | int | None = None
    when: Callable[[S], bool] = always

    def make(self, settings: S) -> Pass:
        """The pass, ready to run."""
        return self.work(**self.args(settings))

    def expected(self, settings: S) -> int | None:
        """Number of sites that the pass must find in this run."""
        return self.expect(settings) if callable(self.expect) else self.expect


Recipe = tuple[Step[S], ...]
