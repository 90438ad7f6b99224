"""A package whose head computes the logits of a few tokens, as it would be for all of them.

The other tokens have logits of 4 bits, whose error could hide a fault. The same graph with the head
in 8 bits alone is held to what any other package is held to.
"""

from __future__ import annotations

import onnx

from surgery.rewrite.shortlists import TOKENS
from surgery.verify.opened import Opened

WHOLE = "head in 8 bits for all tokens"
LOOKUP = "GatherBlockQuantized"
"""The op that reads rows of the head."""


def shortlist(package: Opened) -> int | None:
    """How many tokens the head computes logits for; None for all of them."""
    count = package.graphs["decoder"].graph.initializers.get(TOKENS)
    tensor = count.const_value if count is not None else None
    return None if tensor is None else int(tensor.numpy()[0])


def with_whole_head(graph: onnx.GraphProto) -> None:
    """Let the head compute all logits, of the same weight in blocks; nothing without a choice."""
    made = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    top = readers.get(TOKENS)
    if top is None:
        return
    draft = made[top.input[0]]
    (rows,) = (n for n in graph.node if n.op_type == LOOKUP and n.input[1] == top.output[1])
    product = readers[rows.output[0]]
    exact = readers[product.output[0]]
    end = readers[exact.output[0]]
    column = made[product.input[1]]
    given = {one.name: one.i for one in draft.attribute}
    block, bits = ({one.name: one.i for one in rows.attribute}[n] for n in ("block_size", "bits"))
    codes = onnx.TensorProto()
    codes.CopyFrom(next(tensor for tensor in graph.initializer if tensor.name == rows.input[0]))
    codes.name += ".blocks"
    codes.dims[:] = [given["N"], given["K"] // block, block * bits // 8]
    head = onnx.helper.make_node(
        "MatMulNBits",
        [draft.input[0], codes.name, *rows.input[2:]],
        list(end.output),
        end.name,
        domain=draft.domain,
        **(given | {"block_size": block, "bits": bits}),
    )
    gone = {node.output[0] for node in (draft, top, rows, column, product, exact, end)}
    nodes = [
        head if node.output[0] == end.output[0] else node
        for node in graph.node
        if node.output[0] not in gone or node.output[0] == end.output[0]
    ]
    read = {name for node in nodes for name in node.input}
    unread = {TOKENS, rows.input[0], *draft.input[1:]} - read
    weights = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*weights, codes])
