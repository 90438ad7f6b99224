"""The guard of attention against queries that see no key becomes the op's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.probe import Leaks, Region
from surgery.match.scores import LOWEST
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

BOOL = ir.DataType.BOOL
TRIALS = 3
"""Random masks that a guard is tried with."""
FAR = 6
"""Nodes between a mask as numbers and the bool that it is made of."""


@dataclass(frozen=True)
class Guarded:
    """An attention and what its mask is made of.

    Attributes:
        node: the attention.
        shown: bool `[B, N, S, T]`, or 1 in place of B or N: whether a query sees a key.
    """

    node: ir.Node
    shown: ir.Value


class RowGuard(NodePass[Guarded]):
    """The guard of attention against queries that see no key becomes the op's own.

    before  Where(no key is shown, 0, Attention(q, k, v, numbers made of shown))
    after   Attention(q, k, v, shown): for a bool mask the op itself gives such a query zeros
    keeps   values; that the numbers are 0 or lowest, and that the guard holds exactly for queries
            that no key is shown to, running both on random masks shows
    not     numbers that depend on more than one bool; an attention that another node reads too,
            or that is moved before the guard
    why     the bool can be read as causal, or as padding, and nothing stands behind the attention
            any more
    upstream microsoft/onnxruntime#33876
    """

    name = "row_guard"
    needs = ("attention", "shapes", "dims", "fold")
    anchors = ("Where",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.known: dict[tuple[ir.Value, ir.Value], ir.Value | None] = {}

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.known.clear()

    def match(self, node: ir.Node, m: Matcher) -> Guarded:
        """From the choice up to the attention, its mask and the bool behind both."""
        hidden, zero, value = node.inputs[:3]
        assert hidden is not None and value is not None
        made = m.producer(value, "Attention")
        numbers = m.constant(zero, "a constant where no key is shown")
        m.check(not numbers.any(), "zeros where no key is shown", numbers.ravel()[:1])
        m.user(value, "Where")
        mask = made.inputs[3] if len(made.inputs) > 3 else None
        m.check(mask is not None, "a mask", "none")
        assert mask is not None
        shown = self.shown(mask, hidden)
        m.check(shown is not None, "a mask and a guard made of one bool", hidden.name)
        assert shown is not None
        return Guarded(made, shown)

    def shown(self, mask: ir.Value, hidden: ir.Value) -> ir.Value | None:
        """The nearest bool that a mask and its guard are made of, cached."""
        key = mask, hidden
        if key not in self.known:
            self.known[key] = next((v for v in bools(mask) if explains(v, mask, hidden)), None)
        return self.known[key]

    def rewrite(self, node: ir.Node, found: Guarded, add: Builder) -> None:
        """Hand the bool to the op."""
        found.node.replace_input_with(3, found.shown)
        replace(node.outputs[0], found.node.outputs[0])


def bools(mask: ir.Value) -> Iterator[ir.Value]:
    """Bools of the mask's shape that it is computed from, the nearest first."""
    level = [mask]
    for _ in range(FAR):
        yield from (v for v in level if v.dtype == BOOL and v.shape == mask.shape)
        made = [v.producer() for v in level]
        level = [v for n in made if n is not None for v in n.inputs if v is not None]


def explains(shown: ir.Value, mask: ir.Value, hidden: ir.Value) -> bool:
    """Whether a mask hides what a bool does not show, and the guard holds where that is all."""
    producer = mask.producer() or hidden.producer()
    if producer is None or not isinstance(producer.graph, ir.Graph) or shown.shape is None:
        return False
    if len(shown.shape) != 4:
        return False
    try:
        regions = [
            None if value is shown else Region(producer.graph, [shown], value)
            for value in (mask, hidden)
        ]
        for seed in range(TRIALS):
            rng = np.random.default_rng(seed)
            free = (2, 3, 4, 5)  # where the shape has no number
            shape = [d if isinstance(d, int) else n for d, n in zip(shown.shape, free, strict=True)]
            some = rng.random(shape) < 0.5
            some &= rng.random((*shape[:3], 1)) < 0.7
            got = [some if r is None else r({shown.name or "": some}) for r in regions]
            numbers, rows = got
            if numbers.dtype == bool:
                numbers = np.where(numbers, np.float32(0), np.float32(-np.inf))
            plain = np.all((numbers == 0) | (numbers <= LOWEST))
            if not plain or not np.array_equal(numbers == 0, some):
                return False
            if not np.array_equal(rows, ~some.any(-1, keepdims=True)):
                return False
    except Leaks:
        return False
    return True
