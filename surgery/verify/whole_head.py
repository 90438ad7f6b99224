"""A package whose head computes the logits of a few tokens, as it would be for all of them.

The other tokens have logits of 4 bits, which are up to a tenth of the largest logit off and could
hide a fault of that size. The same graph with the head in 8 bits alone is held to what any other
package is held to.
"""

from __future__ import annotations

import onnx

from surgery.rewrite.shortlists import TOKENS
from surgery.verify.opened import Opened

WHOLE = "head in 8 bits for all tokens"
MADE_BY = "ScatterElements"
"""The op that puts logits of the head among those of the choice."""


def shortlist(package: Opened) -> int | None:
    """How many tokens the head computes logits for; None for all of them."""
    count = package.graphs["decoder"].graph.initializers.get(TOKENS)
    tensor = count.const_value if count is not None else None
    return None if tensor is None else int(tensor.numpy()[0])


def with_whole_head(graph: onnx.GraphProto) -> None:
    """Let the head compute all logits, of the same weight in blocks; nothing without a choice."""
    made = {name: node for node in graph.node for name in node.output}
    chosen = [node for node in graph.node if TOKENS in node.input]
    if not chosen:
        return
    (top,) = chosen
    draft = made[top.input[0]]
    (rows,) = (node for node in graph.node if node.op_type == "GatherBlockQuantized")
    (end,) = (
        node for node in graph.node if node.op_type == MADE_BY and top.output[1] in node.input
    )
    given = {one.name: one.i for one in draft.attribute}
    block, bits = ({one.name: one.i for one in rows.attribute}[n] for n in ("block_size", "bits"))
    codes = next(tensor for tensor in graph.initializer if tensor.name == rows.input[0])
    codes.dims[:] = [given["N"], given["K"] // block, block * bits // 8]
    head = onnx.helper.make_node(
        "MatMulNBits",
        [draft.input[0], rows.input[0], *rows.input[2:]],
        list(end.output),
        end.name,
        domain=draft.domain,
        **(given | {"block_size": block, "bits": bits}),
    )
    column = next(n for n in graph.node if n.op_type == "Unsqueeze" and n.input[0] == head.input[0])
    product = next(node for node in graph.node if column.output[0] in node.input)
    exact = next(node for node in graph.node if product.output[0] in node.input)
    gone = {node.output[0] for node in (draft, top, rows, column, product, exact, end)}
    kept = [node for node in graph.node if node.output[0] not in gone]
    unread = {TOKENS, *draft.input[1:]}
    weights = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*kept, head])
    graph.initializer.extend(weights)
