"""Plain rotary embedding of queries and keys as one node each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, replace
from surgery.rope import Rotation, rotation, unsqueezed


@dataclass(frozen=True)
class Rotated:
    """A rotation of packed rows, its angles one row a position."""

    rotation: Rotation
    cos: ir.Value
    sin: ir.Value
    """`[P, D/2]`, before the halves were repeated."""
    heads: int


class Rotary(NodePass[Rotated]):
    """Rotary embedding of packed rows becomes one node for queries and one for keys.

    before  x [P, N, D] * cos + concat(-x2, x1) * sin, cos = Unsqueeze(Concat(c, c), -2)
    after   RotaryEmbedding(x [1, P, N * D], [0], c [P, D/2], s [P, D/2])
    keeps   angles per row: the call's own cosines and sines serve as the op's table
    not     rows with a batch axis; angles that are not the same twice
    why     7 nodes a rotation, each a pass over memory, become one
    """

    name = "rotary"
    anchors = ("Concat",)

    def match(self, node: ir.Node, m: Matcher) -> Rotated:
        """A rotation of rank 3 with repeated angles."""
        found = rotation(node, m)
        m.rank(found.x, 3)
        heads = found.x.shape[1] if found.x.shape is not None else None
        m.check(isinstance(heads, int), "a known number of heads", found.x.shape)
        assert isinstance(heads, int)
        cos, sin = (once(unsqueezed(v, m), m) for v in (found.cos, found.sin))
        return Rotated(found, cos, sin, heads)

    def rewrite(self, node: ir.Node, found: Rotated, add: Builder) -> None:
        """Rotate all heads of a row at once."""
        turn = found.rotation
        width = found.heads * turn.width
        rows = turn.x.shape[0] if turn.x.shape is not None else None
        flat = add.constant(np.array([1, -1, width], np.int64), f"one_row_of_{width}")
        split = add.constant(np.array([-1, found.heads, turn.width], np.int64), "split_heads")
        start = add.constant(np.array([0], np.int64), "position_0")
        x = add("Reshape", [turn.x, flat], dtype=turn.x.dtype, shape=(1, rows, width))
        out = add(
            "RotaryEmbedding",
            [x, start, found.cos, found.sin],
            {"num_heads": found.heads},
            domain="com.microsoft",
            like=x,
        )
        replace(turn.end, add("Reshape", [out, split], like=turn.x))


def once(value: ir.Value, m: Matcher) -> ir.Value:
    """The half of angles that were concatenated with themselves."""
    node = m.producer(value, "Concat")
    half = node.inputs[0]
    assert half is not None
    m.check(len(node.inputs) == 2 and node.inputs[1] is half, "the same angles twice", "others")
    m.rank(half, 2)
    return half
