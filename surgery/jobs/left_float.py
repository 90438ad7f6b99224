"""What quantizing a graph left in float, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
BLOCKS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")
"""Ops whose float initializers are scales and zero points."""
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
            for node, found in work.scan(model):
                if isinstance(found, Miss) and found.depth >= depth(reasons.get(node)):
                    reasons[node] = found
    groups: dict[str, Group] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.nbytes < WEIGHT:
                continue
            why = reason(value, reasons)
            if why:
                groups.setdefault(why, Group(why)).sizes[value.name or ""] = tensor.nbytes
    return sorted(groups.values(), key=lambda group: -group.nbytes)


def depth(miss: Miss | None) -> int:
    """Conditions that held before one failed."""
    return miss.depth if miss is not None else 0


def reason(value: ir.Value, reasons: Mapping[ir.Node, Miss]) -> str:
    """Why a weight stays in float; "" for a part of a quantized one."""
    shape = value.shape or ()
    if sum(size != 1 for size in shape) <= 1:
        return "" if read_only_by(value, BLOCKS) else "vectors: norms, biases"
    nodes = list(value.consumers())
    while nodes and nodes[0].op_type in MOVES:
        nodes = list(nodes[0].outputs[0].consumers())
    if not nodes or nodes[0].op_type in BLOCKS:
        return ""
    node = nodes[0]
    if node not in reasons:
        return f"{node.op_type} has no quantized form here"
    return f"{node.op_type} needs {reasons[node].condition}"


def read_only_by(value: ir.Value, ops: tuple[str, ...]) -> bool:
    """Whether no other ops than these read a value."""
    return all(node.op_type in ops for node in value.consumers())
