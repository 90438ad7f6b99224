"""What quantizing passes share: the choice of formats, and the initializers of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import onnx_ir as ir

import quant
from surgery.rewrite.builder import initializer
from surgery.rewrite.contract import NodePass
from surgery.rewrite.weights import Quantized, RowTensor

T = TypeVar("T")

Policy = Callable[[str], quant.BlockFormat | None]
"""Format of a weight by its name; None leaves it as it is."""

PARTS = ("packed", "scales", "zero_points")
"""Suffixes of the initializers that a quantized weight becomes."""


class BlockPass(NodePass[T]):
    """A pass whose new op multiplies by quantized weights."""

    def __init__(
        self,
        policy: Policy | None = None,
        accuracy_level: int = 0,
        scales: ir.DataType = ir.DataType.FLOAT,
        *,
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
            bits: bits of a code, 4 or 8.
            block: weights that share a scale.
            symmetric: leave out zero points.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        form = quant.BlockFormat(bits, block, symmetric)
        self.policy: Policy = policy or (lambda name: form)
        self.accuracy_level, self.scales = accuracy_level, scales


def block_values(
    graph: ir.Graph, name: str, blocks: Quantized, flat: bool = False
) -> list[ir.Value]:
    """The initializers of a quantized weight; existing ones of the same names are reused.

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
        values.append(known or initializer(graph, part_name, tensor))
    return values
