"""The nodes from the output projection (the head) to the graph output `logits`."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.matcher import Matcher, constant

MOVES = ("Transpose", "Cast", "Identity")
"""Ops that may stand between a weight and its product."""
SHAPERS = (*MOVES, "Add", "Mul", "Div", "Tanh", "Slice", "Reshape")
"""Ops that may stand between the product with a head and the logits."""
POINTWISE = ("Mul", "Div", "Tanh")
"""Those of them that act on each number alone."""


def head_weights(model: ir.Model) -> dict[str, int]:
    """The weights whose product is an output called logits, scaled, capped or neither.

    Returns:
        Names of the weights, and the width of the hidden state that each multiplies.
    """
    found: dict[str, int] = {}
    queue = [value for value in model.graph.outputs if "logits" in (value.name or "")]
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            weight, axis = node.inputs[1], node.attributes.get_int("transB", 0)
            while weight is not None and (made := weight.producer()) is not None:
                axis ^= made.op_type == "Transpose"
                weight = made.inputs[0] if made.op_type in MOVES else None
            tensor = weight.const_value if weight is not None else None
            if weight is not None and tensor is not None and len(tensor.shape) == 2:
                found[weight.name or ""] = tensor.shape.numpy()[axis]
        elif node.op_type in SHAPERS:
            queue += [value for value in node.inputs if value is not None]
    return found


def path_to_logits(node: ir.Node) -> list[ir.Value]:
    """The output of `node`, followed by what a scale and a soft cap make of it."""
    values = [node.outputs[0]]
    while not values[-1].is_graph_output() and len(users := values[-1].consumers()) == 1:
        (user,) = users
        others = [v for v in user.inputs if v is not values[-1]]
        numbers = [constant(v) for v in others]
        scalar = all(n is not None and n.size == 1 and n.ndim <= 1 for n in numbers)
        if user.op_type not in POINTWISE or not scalar:
            break
        values.append(user.outputs[0])
    return values


def before_head(node: ir.Node, m: Matcher) -> ir.Value:
    """The hidden states [B, S, H] that a product with the head, which makes logits, reads.

    Raises:
        Miss: the product is another one.
    """
    out = path_to_logits(node)[-1]
    m.check(out.is_graph_output() and out.name == "logits", "the output logits", out.name)
    hidden = node.inputs[0]
    assert hidden is not None
    m.rank(hidden, 3)
    return hidden
