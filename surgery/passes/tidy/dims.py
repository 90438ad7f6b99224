"""One spelling for each symbolic dimension."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeGuard

import onnx_ir as ir
import sympy

from surgery.match.lengths import expression
from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.matcher import constant

BOUNDED = re.compile(r"Min\((\d+), ?(\w+)\)|Min\((\w+), ?(\d+)\)")
"""A length with a constant bound, such as the rows of a table."""
QUOTIENT = re.compile(r"floor\(|//")
"""A length that a reshape divides by another, as sympy and as exporters write it."""
PAIRWISE = ("Add", "Sub", "Mul", "Div")
NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


class Dims(Pass):
    """Equal symbolic dimensions get one spelling.

    before  the same length as "sequence + past" here and "past + sequence" there
    after   expressions as sympy writes them, or under their alias ("total") ; the number where the
            weight of a product or a norm fixes it, or a table that is added to patches ; s for
            Min(512, s) where an elementwise op on both proves them equal
    keeps   every node; only the spelling of dimensions changes
    not     dimensions without a name
    why     shapes are compared as strings: with two spellings, a fusion would miss layers
    upstream microsoft/onnxscript#2424
    """

    name = "dims"

    def __init__(
        self, aliases: Mapping[str, str] | None = None, *, expect: int | None = None
    ) -> None:
        """Set names for expressions.

        Args:
            aliases: canonical expression to name, such as {"past + sequence": "total"}.
        """
        super().__init__(expect=expect)
        self.aliases = dict(aliases or {})
        self.known: dict[str, str] = {}
        self.fixed: dict[str, int | str] = {}

    def canonical(self, dim: str) -> str | int:
        """The one spelling of a dimension, or the number that an op fixes it to."""
        spelled = self.spelled(dim)
        return self.fixed.get(spelled, int(spelled) if spelled.isdecimal() else spelled)

    def spelled(self, dim: str) -> str:
        """An expression as sympy writes it, or its alias."""
        if dim not in self.known:
            found = expression(dim, sympy.Symbol)
            spelled = dim if found is None else str(found)
            self.known[dim] = self.aliases.get(spelled, spelled)
        return self.known[dim]

    def values(self, model: ir.Model) -> Iterator[ir.Value]:
        """Values with a dimension that is not in its canonical spelling."""
        # An op beside one spelling of a length fixes all spellings of it.
        self.fixed = {self.spelled(dim): value for dim, value in fixed(model).items()}
        for graph in model.graphs():
            for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
                dims = [str(d.value) for d in value.shape or () if named(d)]
                if any(self.canonical(dim) != dim for dim in dims):
                    yield value

    def sites(self, model: ir.Model) -> list[Site]:
        """Values whose shape changes."""
        return [Site(v.name or "", str(v.shape)) for v in self.values(model)]

    def apply(self, model: ir.Model) -> int:
        """Write every dimension in its canonical spelling."""
        found = list(self.values(model))
        for value in found:
            assert value.shape is not None
            value.shape = ir.Shape(
                [self.canonical(str(d.value)) if named(d) else d for d in value.shape]
            )
        return len(found)


def fixed(model: ir.Model) -> dict[str, int | str]:
    """Dimensions that an op determines: by the shape of its weight, or by its other operand."""
    found: dict[str, int | str] = {}
    for node in (node for graph in model.graphs() for node in graph):
        if node.op_type in PAIRWISE:
            found.update(bounded(node))
            found.update(placed(node))
        x, rows = (*node.inputs, None)[0], rows_of(node)
        if x is not None and x.shape and rows is not None and named(dim := x.shape[-1]):
            found[str(dim.value)] = rows
    return found


def bounded(node: ir.Node) -> Iterator[tuple[str, str]]:
    """Pairs ("Min(n, s)", "s") of dimensions that an elementwise op on both proves equal.

    Such an op takes unequal lengths only if one of them is 1, and for n > 1 Min(n, s) is 1 only
    where s is.
    """
    shapes = [v.shape for v in node.inputs if v is not None and v.shape is not None]
    if len(shapes) != 2:
        return
    for pair in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False):
        for dim, beside in (pair, pair[::-1]):
            if not named(dim) or not named(beside):
                continue
            parts = BOUNDED.fullmatch(str(dim.value))
            if parts is None:
                continue
            number, word = parts[1] or parts[4], parts[2] or parts[3]
            if int(number) > 1 and word == str(beside.value):
                yield str(dim.value), word


def placed(node: ir.Node) -> Iterator[tuple[str, int]]:
    """Numbers of patches that a stored table fixes: it has a row for each place of a picture.

    The number would be another one only for a picture of a single patch, which the sum would
    stretch to the whole table.
    """
    values = [v for v in node.inputs if v is not None and v.shape is not None]
    tables = [v for v in values if stored(v)]
    if len(values) != 2 or len(tables) != 1:
        return
    (table,) = tables
    other = values[0] if table is values[1] else values[1]
    for dim, rows in zip(reversed(other.shape or ()), reversed(table.shape or ()), strict=False):
        if named(dim) and QUOTIENT.search(str(dim.value)) and isinstance(rows, int) and rows > 1:
            yield str(dim.value), rows


def stored(value: ir.Value) -> bool:
    """Whether a value is a table, or rows of one at constant places."""
    node = value.producer()
    if node is None or node.op_type != "Gather":
        return value.is_initializer()
    table, places = node.inputs
    return table is not None and table.is_initializer() and constant(places) is not None


def rows_of(node: ir.Node) -> int | None:
    """The length that a node's weight requires of the last axis of its first input."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not weight.shape or node.attributes.get_int("transA", 0) == 1:
        return None
    size: int | ir.SymbolicDim
    if node.op_type in NORMS and len(weight.shape) == 1 and node.attributes.get_int("axis", -1) < 0:
        size = weight.shape[0]
    elif node.op_type in ("MatMul", "Gemm"):
        turned = node.attributes.get_int("transB", 0) == 1 or len(weight.shape) == 1
        size = weight.shape[-1 if turned else -2]
    else:
        return None
    return size if isinstance(size, int) else None


def named(dim: int | ir.SymbolicDim) -> TypeGuard[ir.SymbolicDim]:
    """Whether a dimension is symbolic and has a name."""
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None
