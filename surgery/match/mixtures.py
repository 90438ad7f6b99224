"""Mixtures of experts as one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.weights import Source, source_of

UPWARD, DOWNWARD = 2, 4
"""Positions of the experts' weights among the inputs of `MoE`."""


@dataclass(frozen=True)
class Mixture:
    """A `MoE` node of gated experts, gate and up rows alternating.

    Attributes:
        node: MoE(x, logits, upward, None, downward).
        upward: the weight as [E, 2 * I, H].
        downward: the weight as [E, H, I].
    """

    node: ir.Node
    upward: Source
    downward: Source

    @property
    def inputs(self) -> tuple[str, str]:
        """Names of x, [..., H], and of the router's logits, [..., E]."""
        x, logits = self.node.inputs[:2]
        assert x is not None and logits is not None
        return x.name or "", logits.name or ""

    @property
    def names(self) -> tuple[str, str]:
        """Names of both weights."""
        upward, downward = self.node.inputs[UPWARD], self.node.inputs[DOWNWARD]
        assert upward is not None and downward is not None
        return upward.name or "", downward.name or ""

    @property
    def active(self) -> int:
        """Experts that each token goes to."""
        return self.node.attributes["k"].as_int()


def mixture_of(node: ir.Node) -> Mixture | None:
    """The mixture that a node is, or None."""
    if node.op_type != "MoE":
        return None
    sources = []
    for place in (UPWARD, DOWNWARD):
        value = node.inputs[place]
        source = source_of(value) if value is not None and value.is_initializer() else None
        if source is None:
            return None
        sources.append(source)
    return Mixture(node, *sources)
