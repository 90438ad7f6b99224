"""What quantizing passes share: the choice of formats, and the initializers of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import onnx_ir as ir

import quant
from surgery.rewrite.builder import initializer
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, Miss
from surgery.rewrite.weights import Quantized, RowTensor, Source, source_of

T = TypeVar("T")

Policy = Callable[[str], quant.BlockFormat | None]
"""Format of a weight by its name; None leaves it as it is."""


class WeightPlan(Protocol):
    """A decision about all weights of a graph at once, and blocks that were computed before."""

    @property
    def formats(self) -> Mapping[str, quant.BlockFormat | None]:
        """Format of each weight by its name; None leaves it in float."""

    def source(self, name: str, n: int, k: int) -> Source | None:
        """Blocks of a weight [N, K] that were computed before; None to round it."""

    def stack(self, name: str, format: quant.BlockFormat) -> Source | None:
        """Blocks of a weight [E, N, K] that were computed before; None to round it."""

    def data(self) -> dict[str, Any]:
        """The plan as plain data."""


Planner = Callable[[ir.Model], WeightPlan]
"""Makes a plan for the graph at hand."""

PARTS = ("packed", "scales", "zero_points")
"""Suffixes of the initializers that a quantized weight becomes."""

QUANTIZABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Dtypes of weights that can be quantized."""


def quantizable(weight: ir.Value, m: Matcher) -> Source:
    """The source of a weight that can be quantized."""
    source = source_of(weight)
    m.check(source is not None, "a weight of the checkpoint", weight.name)
    assert source is not None
    dtype = source.parts[0][0]
    m.check(dtype in QUANTIZABLE, "a weight of 16 or 32 bits", dtype)
    return source


class PlannedPass(NodePass[T]):
    """A pass that may ask for a plan of all weights of a graph before it matches."""

    def __init__(self, planner: Planner | None = None, *, expect: int | None = None) -> None:
        """Take what makes plans.

        Args:
            planner: makes a plan for the graph at hand.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.planner = planner
        self.plan: WeightPlan | None = None
        self.followed: WeightPlan | None = None
        """The plan of the last rewrite."""

    def details(self) -> dict[str, Any]:
        """The plan that was followed."""
        return {} if self.followed is None else {"plan": self.followed.data()}

    def apply(self, model: ir.Model) -> int:
        """Rewrite, and remember the plan that was followed."""
        count = super().apply(model)
        self.followed = self.plan
        return count

    def scan(self, model: ir.Model) -> Iterator[tuple[ir.Node, T | Miss]]:
        """Plan for this graph, then match."""
        self.plan = self.planner(model) if self.planner is not None else None
        yield from super().scan(model)


class BlockPass(PlannedPass[T]):
    """A pass whose new op multiplies by quantized weights."""

    def __init__(
        self,
        policy: Policy | None = None,
        accuracy_level: int = 0,
        scales: ir.DataType = ir.DataType.FLOAT,
        *,
        planner: Planner | None = None,
        bits: int = 4,
        block: int = 32,
        symmetric: bool = True,
        expect: int | None = None,
    ) -> None:
        """Choose formats.

        Args:
            policy: format of a weight by its name; without it, every weight gets the format that
                `bits`, `block` and `symmetric` describe.
            accuracy_level: attribute of the op; 4 lets a CPU round activations to int8.
            scales: dtype of the scales; the op wants that of the activations.
            planner: decides about all weights of a graph at once; the policy decides about those
                that its plan does not name.
            bits: bits of a code, 4 or 8.
            block: weights that share a scale.
            symmetric: leave out zero points.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(planner, expect=expect)
        form = quant.BlockFormat(bits, block, symmetric)
        self.policy: Policy = policy or (lambda name: form)
        self.accuracy_level, self.scales = accuracy_level, scales

    def format(self, name: str) -> quant.BlockFormat | None:
        """The format of a weight; None leaves it in float."""
        if self.plan is not None and name in self.plan.formats:
            return self.plan.formats[name]
        return self.policy(name)

    def blocks(self, name: str, source: Source, format: quant.BlockFormat) -> Source:
        """A weight [N, K] in blocks: those of the plan, or rounded as they are written."""
        n, k = source.parts[0][1]
        known = self.plan.source(name, n, k) if self.plan is not None else None
        return known or Quantized(source, format, self.scales)


def block_values(graph: ir.Graph, name: str, blocks: Source, flat: bool = False) -> list[ir.Value]:
    """The initializers of a quantized weight; existing ones of the same names are reused.

    Two ops may want the codes of one weight in two shapes: the later one has a name of its own, and
    both the same bytes.

    Args:
        graph: where they go.
        name: of the weight.
        blocks: its codes, scales and, where the format has them, zero points.
        flat: the codes of a row on one axis, `[..., N, K * bits / 8]`, instead of by blocks.
    """
    values = []
    for part, (_, shape) in enumerate(blocks.parts):
        if flat and part == 0:
            shape = (*shape[:-2], shape[-2] * shape[-1])
        part_name = f"{name}.{PARTS[part]}"
        tensor = RowTensor(blocks, part, name=part_name, shape=shape)
        known = graph.initializers.get(part_name)
        if known is not None and known.shape != ir.Shape(shape):
            part_name = f"{part_name}.{'rows' if flat else 'blocks'}"
            tensor = RowTensor(blocks, part, name=part_name, shape=shape)
            known = graph.initializers.get(part_name)
        values.append(known or initializer(graph, part_name, tensor))
    return values
