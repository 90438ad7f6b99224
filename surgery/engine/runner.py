"""Runs a recipe on a graph, with watchers that see the graph after each pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.engine.facts import Facts
from surgery.engine.selection import EVERYTHING, Selection
from surgery.engine.step import Recipe, S, Step
from surgery.rewrite import view
from surgery.rewrite.contract import ExpectationError, Pass, PassError


@dataclass(frozen=True)
class Record:
    """What one pass did.

    Attributes:
        graph: name of the graph.
        name: name of the pass.
        index: position of the pass in this graph's run, from 1.
        sites: number of places where it acted.
        expected: number of sites that the recipe expects; None for any.
        before: number of nodes before it, `Constant` nodes not counted.
        after: number of nodes after it.
        deltas: nodes gained and lost by op type.
        seconds: its run time.
        step: the step of the recipe, from which the pass can be made again.
        work: the pass, after it ran.
        notes: findings of watchers by their names, as plain data.
    """

    graph: str
    name: str
    index: int
    sites: int
    expected: int | None
    before: int
    after: int
    deltas: Counter[str]
    seconds: float
    step: Step[Any] = field(repr=False)
    work: Pass = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def met(self) -> bool:
        """Whether the number of sites is the expected one."""
        return self.expected is None or self.sites == self.expected

    def line(self) -> str:
        """The line that a run prints."""
        changes = sorted(self.deltas.items(), key=lambda kv: (kv[1], kv[0]))
        words = " ".join(f"{n:+d} {op.split('::')[-1]}" for op, n in changes if n)
        wanted = "" if self.met else f"(expected {self.expected}, but earlier passes were skipped) "
        return (
            f"{self.graph:<9} {self.name:<24} {self.sites:>4} sites "
            f"{self.before:>5} -> {self.after:<5} {self.seconds:5.2f} s  {wanted}{words}"
        )


class Watcher(Protocol):
    """Looks at a run pass by pass. It reads graphs and never changes them."""

    def begin(self, name: str, model: ir.Model, facts: Facts) -> None:
        """See a graph before its first pass."""

    def after(self, record: Record, model: ir.Model) -> str:
        """See a graph after a pass; returns text for the pass's line."""

    def end(self) -> None:
        """The last graph is done."""


def run(
    name: str, model: ir.Model, recipe: Recipe[S], settings: S, selection: Selection = EVERYTHING
) -> Iterator[Record]:
    """Apply a recipe in place, yielding a record after each pass.

    A pass after a skipped one may find another number of sites than the recipe expects; its record
    then says so.

    Raises:
        ExpectationError: a pass found another number of sites than the recipe expects.
        PassError: a pass could not do what it promised, or needs one that the selection leaves out.
    """
    index, before = 0, view.histogram(model)
    for step, gap in selection.steps(recipe):
        if not step.when(settings):
            continue
        work = step.make(settings)
        start = time.perf_counter()
        try:
            work(model)
        except Exception as e:
            if not gap or isinstance(e.__cause__ or e, UserError):
                raise
            raise PassError(
                f"{work.name}: cannot run on the {name} graph without the passes that were left "
                f"out before it."
            ) from e
        seconds = time.perf_counter() - start
        after = view.histogram(model)
        expected = step.expected(settings)
        if expected is not None and work.count != expected and not gap:
            raise missed(name, model, work, expected)
        deltas = Counter(after)
        deltas.subtract(before)
        index += 1
        yield Record(
            name,
            work.name,
            index,
            work.count,
            expected,
            total(before),
            total(after),
            deltas,
            seconds,
            step,
            work,
        )
        before = after


def watched(
    name: str,
    model: ir.Model,
    recipe: Recipe[Facts],
    facts: Facts,
    selection: Selection = EVERYTHING,
    watchers: Sequence[Watcher] = (),
) -> Iterator[tuple[Record, str]]:
    """`run` with watchers: each record with the text that they add to its line."""
    for watcher in watchers:
        watcher.begin(name, model, facts)
    for record in run(name, model, recipe, facts, selection):
        words = [watcher.after(record, model) for watcher in watchers]
        yield record, "  ".join(filter(None, words))


def total(histogram: Counter[str]) -> int:
    """Number of all nodes, `Constant` nodes not counted."""
    return sum(n for op, n in histogram.items() if op != "Constant")


def missed(name: str, model: ir.Model, work: Pass, expected: int) -> ExpectationError:
    """The error for a wrong count, with the nearest miss."""
    misses = work.near_misses(model)
    nearest = f" Nearest miss: {misses[0]}." if misses else ""
    return ExpectationError(
        f"{work.name}: {work.count} sites in the {name} graph, expected {expected}.{nearest} "
        f"See python -m surgery explain {work.name} --graph {name}."
    )
