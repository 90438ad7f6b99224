"""Reshapes to computed shapes become reshapes to constant ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant


class StaticReshape(NodePass[list[int]]):
    """A shape that is computed at run time becomes a constant with 0 and -1.

    before  Reshape(x [B, S, N * D], Concat(batch, sequence, -1, D))
    after   Reshape(x, [0, 0, N, D])
    keeps   the shape: 0 copies the dimension of x at that place, one -1 is inferred
    not     two or more dimensions that are neither known nor equal to that of x at their place
    why     shape arithmetic runs for every token, and makes layers depend on other graph inputs
    """

    name = "static_reshape"
    anchors = ("Reshape",)

    def match(self, node: ir.Node, m: Matcher) -> list[int]:
        """The constant shape."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        m.check(constant(node.inputs[1]) is None, "a computed shape", "a constant one")
        m.check(source.shape is not None and out.shape is not None, "known ranks", source.shape)
        assert source.shape is not None and out.shape is not None
        shape: list[int] = []
        for i, dim in enumerate(out.shape):
            if isinstance(dim, int):
                shape.append(dim)
            elif i < len(source.shape) and dim.value is not None and dim == source.shape[i]:
                shape.append(0)
            else:
                shape.append(-1)
        m.check(shape.count(-1) <= 1, "one free dimension at most", out.shape)
        return shape

    def rewrite(self, node: ir.Node, found: list[int], add: Builder) -> None:
        """Reshape to the constant; zeros copy."""
        name = "shape_" + "_".join(map(str, found))
        node.replace_input_with(1, add.constant(np.array(found, np.int64), name))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
