"""Runs a recipe on a graph and watches each pass. What is watched is what ships."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery import view
from surgery.contract import ExpectationError, Pass
from surgery.errors import PackageError
from surgery.facts import Facts
from surgery.recipes import Recipe


@dataclass(frozen=True)
class Record:
    """What one pass did."""

    graph: str
    name: str
    sites: int
    before: int
    after: int
    deltas: Counter[str]
    seconds: float

    def line(self) -> str:
        """One line for people."""
        changes = sorted(self.deltas.items(), key=lambda kv: (kv[1], kv[0]))
        words = " ".join(f"{n:+d} {op.split('::')[-1]}" for op, n in changes if n)
        return (
            f"{self.graph:<9} {self.name:<16} {self.sites:>4} sites "
            f"{self.before:>5} -> {self.after:<5} {self.seconds:5.2f} s  {words}"
        )


def load(path: Path, weights: Path | None = None) -> ir.Model:
    """Load a graph; its weights stay where they are.

    Args:
        path: an ONNX file.
        weights: folder of its external data; its own by default.

    Raises:
        PackageError: no such file, or no ONNX graph in it.
    """
    try:
        model = ir.load(path)
    except FileNotFoundError as e:
        raise PackageError(f"{path}: no such file.") from e
    except Exception as e:  # protobuf raises its own kinds
        raise PackageError(f"{path}: no ONNX graph: {e}.") from e
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, weights or path.parent)
    return model


def run(name: str, model: ir.Model, recipe: Recipe, facts: Facts) -> Iterator[Record]:
    """Apply a recipe in place, yielding a record after each pass.

    Raises:
        ExpectationError: a pass found another number of sites than the recipe expects.
        PassError: a pass could not do what it promised.
    """
    for step in recipe:
        if not step.when(facts):
            continue
        work = step.make(facts)
        before, start = view.histogram(model), time.perf_counter()
        work(model)
        seconds = time.perf_counter() - start
        after = view.histogram(model)
        if step.expect is not None and work.count != step.expect(facts):
            raise missed(name, model, work, step.expect(facts))
        deltas = Counter(after)
        deltas.subtract(before)
        yield Record(name, work.name, work.count, total(before), total(after), deltas, seconds)


def total(histogram: Counter[str]) -> int:
    """Nodes in all, constants not counted."""
    return sum(n for op, n in histogram.items() if op != "Constant")


def missed(name: str, model: ir.Model, work: Pass, expected: int) -> ExpectationError:
    """The error for a wrong count, with the nearest miss."""
    misses = work.near_misses(model)
    nearest = f" Nearest miss: {misses[0]}." if misses else ""
    return ExpectationError(
        f"{work.name}: {work.count} sites in the {name} graph, expected {expected}.{nearest} "
        f"See python -m surgery explain {work.name} --graph {name}."
    )
