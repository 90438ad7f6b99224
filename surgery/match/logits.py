"""The way from a product with a head to the output called logits."""

from __future__ import annotations

import onnx_ir as ir

MOVES = ("Transpose", "Cast", "Identity")
"""Ops that may stand between a weight and its product."""
SHAPERS = (*MOVES, "Add", "Mul", "Div", "Tanh", "Slice", "Reshape")
"""Ops that may stand between the product with a head and the logits."""


def head_weights(model: ir.Model) -> frozenset[str]:
    """Names of the weights whose product is an output called logits, capped and scaled or not."""
    found = set()
    queue = [value for value in model.graph.outputs if "logits" in (value.name or "")]
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            weight = node.inputs[1]
            while weight is not None and (made := weight.producer()) is not None:
                weight = made.inputs[0] if made.op_type in MOVES else None
            found.add(weight.name or "" if weight is not None else "")
        elif node.op_type in SHAPERS:
            queue += [value for value in node.inputs if value is not None]
    return frozenset(found - {""})
