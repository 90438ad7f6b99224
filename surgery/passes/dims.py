"""Canonical symbolic dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeGuard

import onnx_ir as ir
import sympy

from surgery.contract import Pass, Site

WORD = re.compile(r"[A-Za-z_]\w*")
ARITHMETIC = re.compile(r"[\w\s+*/()-]+")
"""What is read as an expression: sympy would evaluate anything else as Python."""


class Dims(Pass):
    """One spelling for each symbolic dimension.

    before  the same length as "sequence + past" here and "past + sequence" there
    after   expressions in sympy's order, known ones under a name: "total"
    keeps   every node; dimensions only gain the same name for the same length
    not     dimensions that a tool left without a name
    why     shape checks compare dimensions as strings: a fusion would fire in one layer of two
    upstream microsoft/onnxscript#2424
    """

    name = "dims"

    def __init__(self, aliases: Mapping[str, str] | None = None) -> None:
        """Set names for expressions.

        Args:
            aliases: canonical expression to name, such as {"past + sequence": "total"}.
        """
        super().__init__()
        self.aliases = dict(aliases or {})
        self.known: dict[str, str] = {}

    def canonical(self, dim: str) -> str:
        """The one spelling of a dimension."""
        if dim not in self.known:
            spelled = dim
            if ARITHMETIC.fullmatch(dim):
                try:
                    names = {word: sympy.Symbol(word) for word in WORD.findall(dim)}
                    spelled = str(sympy.sympify(dim, locals=names))
                except (sympy.SympifyError, SyntaxError, TypeError):
                    pass
            self.known[dim] = self.aliases.get(spelled, spelled)
        return self.known[dim]

    def values(self, model: ir.Model) -> Iterator[ir.Value]:
        """Values with a dimension that is spelled otherwise."""
        for graph in model.graphs():
            for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
                dims = [str(d.value) for d in value.shape or () if named(d)]
                if any(self.canonical(dim) != dim for dim in dims):
                    yield value

    def sites(self, model: ir.Model) -> list[Site]:
        """Values to respell."""
        return [Site(v.name or "", str(v.shape)) for v in self.values(model)]

    def apply(self, model: ir.Model) -> int:
        """Respell."""
        found = list(self.values(model))
        for value in found:
            assert value.shape is not None
            value.shape = ir.Shape(
                [self.canonical(str(d.value)) if named(d) else d for d in value.shape]
            )
        return len(found)


def named(dim: int | ir.SymbolicDim) -> TypeGuard[ir.SymbolicDim]:
    """Whether a dimension is symbolic and has a name."""
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None
