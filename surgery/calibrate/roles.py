"""What a weight does in its layer, read off the graph around its product."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from surgery.match.products import Product

SENSITIVITY: Mapping[str, float] = MappingProxyType(
    {
        "value": 45.0,
        "down": 6.6,
        "key": 6.3,
        "up": 3.2,
        "out": 3.0,
        "query": 2.5,
        "gate": 2.0,
        "": 3.0,
    }
)
"""KL divergence in 1e-3 nats a token that a million weights of a role cost when they are rounded
to 4 bits in blocks of 128, measured on a model of 135 million weights (SmolLM2). Used where no
calibration tells better; only ratios matter."""

THROUGH = ("Reshape", "Transpose", "RMSNormalization", "SimplifiedLayerNormalization",
           "MRotaryEmbedding", "RotaryEmbedding", "Add", "Split")  # fmt: skip
"""Ops between a projection and the attention that reads it."""

PORTS = ("query", "key", "value")


def role(product: Product) -> str:
    """The role of a product's weight: a key of `SENSITIVITY`, "" where none is recognized."""
    made = product.node.inputs[0].producer() if product.node.inputs[0] is not None else None
    for port in read_by_attention(product.node):
        return port
    if made is not None and made.op_type in ("GroupQueryAttention", "MultiHeadAttention"):
        return "out"
    if made is not None and made.op_type == "Mul":
        return "down"
    readers = {node.op_type for node in product.node.outputs[0].consumers()}
    if readers & {"QuickGelu", "Gelu", "Sigmoid"}:
        return "gate"
    return "up" if readers == {"Mul"} else ""


def read_by_attention(node: ir.Node, depth: int = 6) -> list[str]:
    """Ports of attention ops that read a node's output, directly or through reshaping."""
    found = []
    for use in node.outputs[0].uses():
        reader = use.node
        if reader.op_type in ("GroupQueryAttention", "MultiHeadAttention", "Attention"):
            if use.idx < len(PORTS):
                found.append(PORTS[use.idx])
        elif reader.op_type in THROUGH and use.idx == 0 and depth:
            found += read_by_attention(reader, depth - 1)
    return found
