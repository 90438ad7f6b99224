"""Lengths read from the graph's inputs, not from whatever has that length."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import sympy

from surgery.match.lengths import Length, lengths_of
from surgery.match.shape_inference import inferred
from surgery.match.shape_rules import Known
from surgery.rewrite.builder import Builder, names, prune
from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.matcher import constant

INT64 = ir.DataType.INT64
LONGEST = 8
"""Lengths in a value that is put together anew."""


class Lengths(Pass):
    """The length of an axis is read off a graph input, once.

    before  Gather(Shape(x), i), x computed from weights, where the axis is one of a graph input's,
            or a sum of such ; several of them in a row
    after   Shape(input, start=a, end=a + 1), Squeeze to a number, Add for a sum, Concat for a row
    keeps   every number: axes of equal names have equal lengths
    not     lengths that are products or depend on what a tensor holds; branches
    why     a mask or a reshape no longer depends on the layers before it, and a mask that depends
            on inputs alone can be read by running it
    """

    name = "lengths"
    needs = ("shapes",)

    def sites(self, model: ir.Model) -> list[Site]:
        """Values that hold lengths and are read otherwise."""
        return [Site(v.name or "", str(f.numbers)) for v, f in self.found(model)]

    def apply(self, model: ir.Model) -> int:
        """Let readers read the lengths from the inputs."""
        found = self.found(model)
        if not found:
            return 0
        first = next(iter(model.graph))
        maker = Maker(Builder(self.name, first, names(model)), axes(model.graph))
        for value, known in found:
            assert known.numbers is not None and known.shape is not None
            made = maker.row(known.numbers) if known.shape else maker.number(known.numbers[0])
            value.replace_all_uses_with(made)
        prune(model)
        return len(found)

    def found(self, model: ir.Model) -> list[tuple[ir.Value, Known]]:
        """Values to replace, with the lengths that they hold."""
        known, free = inferred(model), axes(model.graph)
        out = []
        for node in model.graph:
            if node.metadata_props.get("surgery.pass") == self.name or node.op_type == "Constant":
                continue
            for value in node.outputs:
                fact = known.get(value)
                if fact is None or fact.numbers is None or fact.dtype != INT64:
                    continue
                if not value.uses() or value.is_graph_output() or constant(value) is not None:
                    continue
                if len(fact.numbers) > LONGEST or not lasts(value):
                    continue
                if all(isinstance(n, int) for n in fact.numbers):
                    continue
                if all(readable(n, free) for n in fact.numbers):
                    out.append((value, fact))
        return out


def lasts(value: ir.Value) -> bool:
    """Whether a value is read by something else than arithmetic on lengths."""
    inner = ("Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Add", "Cast", "Reshape")
    return any(use.node.op_type not in inner or use.idx == 1 for use in value.uses())


def axes(graph: ir.Graph) -> dict[sympy.Expr, tuple[ir.Value, int]]:
    """The first input and axis of each free length."""
    found: dict[sympy.Expr, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, length in enumerate(lengths_of(value.shape) or ()):
            if isinstance(length, sympy.Symbol):
                found.setdefault(length, (value, axis))
    return found


def readable(length: Length, free: dict[sympy.Expr, tuple[ir.Value, int]]) -> bool:
    """Whether a length is a number, an axis of an input, or a sum of those."""
    if length is None or isinstance(length, int):
        return length is not None
    parts = length.args if isinstance(length, sympy.Add) else (length,)
    return all(part in free or part.is_Integer for part in parts)


@dataclass
class Maker:
    """Makes each length once."""

    add: Builder
    free: dict[sympy.Expr, tuple[ir.Value, int]]
    rows: dict[tuple[Length, ...], ir.Value] = field(default_factory=dict)
    numbers: dict[Length, ir.Value] = field(default_factory=dict)

    def row(self, lengths: tuple[Length, ...]) -> ir.Value:
        """Lengths in a row."""
        if lengths not in self.rows:
            parts = [self.single(n) for n in lengths]
            shape = {"dtype": INT64, "shape": [len(parts)]}
            self.rows[lengths] = (
                self.add("Concat", parts, {"axis": 0}, **shape) if len(parts) > 1 else parts[0]  # type: ignore[arg-type]
            )
        return self.rows[lengths]

    def number(self, length: Length) -> ir.Value:
        """A length of rank 0."""
        if length not in self.numbers:
            zero = self.add.constant(np.array([0], np.int64), "axis_0")
            row = self.single(length)
            self.numbers[length] = self.add("Squeeze", [row, zero], dtype=INT64, shape=[])
        return self.numbers[length]

    def single(self, length: Length) -> ir.Value:
        """A length in a row of its own."""
        if (length,) in self.rows:
            return self.rows[(length,)]
        if isinstance(length, int) or (length is not None and length.is_Integer):
            number = int(length)
            return self.add.constant(np.array([number], np.int64), f"length_{number}")
        assert length is not None
        if length in self.free:
            value, axis = self.free[length]
            bounds = {"start": axis, "end": axis + 1}
            made = self.add("Shape", [value], bounds, dtype=INT64, shape=[1])
        else:
            first, *rest = sorted(length.args, key=str)
            made = self.single(first)
            for part in rest:
                made = self.add("Add", [made, self.single(part)], dtype=INT64, shape=[1])
        self.rows[(length,)] = made
        return made
