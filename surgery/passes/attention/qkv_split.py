"""Queries, keys and values, split from one fused projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Fused:
    """A projection `[P, 3 * N * D]` and what becomes of it."""

    source: ir.Value
    heads: int
    width: int
    parts: tuple[ir.Value, ir.Value, ir.Value]


class QkvSplit(NodePass[Fused]):
    """A fused projection is split along its columns instead of being transposed.

    before  Transpose(Reshape(x, [P, 3, N, D]), [1, 0, 2, 3]) ; Squeeze(Slice(..., i)) three times
    after   Split(x [P, 3 * N * D], 3) ; Reshape each to [P, N, D]
    keeps   values and shapes of the three parts
    not     another order of axes, another number of parts
    why     one copy of the activation instead of two, in the layout that rotary and attention read
    """

    name = "qkv_split"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Transpose",)

    def match(self, node: ir.Node, m: Matcher) -> Fused:
        """A transpose that brings the part axis to the front, read by three slices."""
        perm = node.attributes.get_ints("perm", ())
        m.check(list(perm) == [1, 0, 2, 3], "the part axis moved to the front", perm)
        split = m.producer(node.inputs[0], "Reshape")
        dims = split.outputs[0].shape
        m.check(dims is not None and dims[1] == 3, "three parts", dims)
        assert dims is not None
        heads, width = dims[2], dims[3]
        known = isinstance(heads, int) and isinstance(width, int)
        m.check(known, "known heads and head width", dims)
        assert isinstance(heads, int) and isinstance(width, int)
        source = split.inputs[0]
        assert source is not None
        m.rank(source, 2)
        columns = source.shape[1] if source.shape is not None else None
        m.check(columns == 3 * heads * width, f"rows of {3 * heads * width}", columns)
        readers = node.outputs[0].consumers()
        m.check(len(readers) == 3, "three readers", len(readers))
        parts: dict[int, ir.Value] = {}
        for reader in readers:
            m.check(reader.op_type == "Slice", "slices", reader.op_type)
            start = int(m.constant(reader.inputs[1]).item())
            stop = int(m.constant(reader.inputs[2]).item())
            m.check(stop == start + 1, "slices of one part", (start, stop))
            axis = reader.inputs[3] if len(reader.inputs) > 3 else None
            axes = m.constant(axis, "a constant axis").ravel().tolist()
            m.check(axes == [0], "slices of axis 0", axes)
            parts[start] = m.user(reader.outputs[0], "Squeeze").outputs[0]
        m.check(set(parts) == {0, 1, 2}, "parts 0, 1 and 2", sorted(parts))
        return Fused(source, heads, width, (parts[0], parts[1], parts[2]))

    def rewrite(self, node: ir.Node, found: Fused, add: Builder) -> None:
        """Split the columns, then reshape each part to its heads."""
        columns = found.heads * found.width
        sizes = add.constant(np.array([columns] * 3, np.int64), f"three_times_{columns}")
        shape = add.constant(np.array([-1, found.heads, found.width], np.int64), "split_heads")
        split = add.node("Split", [found.source, sizes], {"axis": -1}, outputs=3)
        rows = found.source.shape[0] if found.source.shape is not None else None
        for out, part in zip(split.outputs, found.parts, strict=True):
            out.type = ir.TensorType(part.dtype or ir.DataType.FLOAT)
            out.shape = ir.Shape((rows, columns))
            replace(part, add("Reshape", [out, shape], like=part))
