"""What quantizing a graph left in float, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from surgery.engine.loading import WEIGHT
from surgery.match.logits import MOVES
from surgery.passes import GatherNBits, MatMulNBits, PlainLinear, RightWeight
from surgery.rewrite.contract import Pass
from surgery.rewrite.matcher import Miss

QUANTIZING = (RightWeight, PlainLinear, MatMulNBits, GatherNBits)
"""Passes that take a float weight, or prepare it for one that does."""
BLOCKS = ("MatMulNBits", "MatMulIntegerToFloat", "GatherBlockQuantized", "QMoE")
"""Ops whose float initializers are scales and zero points."""
PRODUCTS = ("MatMul", "Gemm", "MoE")
"""Ops that multiply by matrices."""
SHOWN = 2
"""Names of a group that a line shows."""


@dataclass
class Group:
    """Weights that stay in float for one reason.

    Attributes:
        why: the reason.
        sizes: bytes of each weight by its name.
    """

    why: str
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(self.sizes.values())

    def line(self) -> str:
        """For people."""
        names = ", ".join([*self.sizes][:SHOWN])
        more = f" and {len(self.sizes) - SHOWN} more" if len(self.sizes) > SHOWN else ""
        return f"in float: {self.nbytes / 1e6:,.1f} MB, {self.why} ({names}{more})"

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"why": self.why, "weights": self.sizes}


def left_float(model: ir.Model, works: Iterable[Pass]) -> list[Group]:
    """Groups of float weights of a graph, the largest first.

    Args:
        model: the finished graph, its weights not yet written.
        works: the passes that ran; those of `QUANTIZING` say why they left a product alone.
    """
    reasons: dict[ir.Node, Miss] = {}
    for work in works:
        if isinstance(work, QUANTIZING):
            for anchor, found in work.scan(model):
                if isinstance(found, Miss) and found.depth >= depth(reasons.get(anchor)):
                    reasons[anchor] = found
    groups: dict[str, Group] = {}
    for name, size, node in float_weights(model):
        why = "vectors: norms, biases" if node is None else reason(node, reasons)
        groups.setdefault(why, Group(why)).sizes[name] = size
    return sorted(groups.values(), key=lambda group: -group.nbytes)


def depth(miss: Miss | None) -> int:
    """Conditions that held before one failed."""
    return miss.depth if miss is not None else 0


def reason(node: ir.Node, reasons: Mapping[ir.Node, Miss]) -> str:
    """Why the weight of a node stays in float."""
    if node not in reasons:
        return f"{node.op_type} has no quantized form here"
    return f"{node.op_type} needs {reasons[node].condition}"


def float_weights(model: ir.Model) -> Iterator[tuple[str, int, ir.Node | None]]:
    """Weights of a finished graph that are float numbers and no part of a quantized weight.

    Yields:
        The name, the bytes, and the node that computes with the weight; None for a vector.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.nbytes < WEIGHT:
                continue
            node = next((one for one in readers(value) if one.op_type not in BLOCKS), None)
            if node is not None:
                vector = sum(size != 1 for size in tensor.shape) <= 1
                yield value.name or "", tensor.nbytes, None if vector else node


def readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that compute with a weight, those that only move it left out."""
    nodes = [*value.consumers()]
    while nodes:
        node = nodes.pop(0)
        if node.op_type in MOVES:
            nodes = [*node.outputs[0].consumers(), *nodes]
        else:
            yield node
