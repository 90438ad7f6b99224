"""Weights keep the dtype of the checkpoint and are cast right before they are read."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Source, narrow, set_source, source_of

LARGE = 1 << 20
"""Fewest bytes, in float32, of a weight that is cast late."""


class LateCast(NodePass[Source]):
    """A weight is stored in the narrow dtype of the checkpoint and cast right before its use.

    before  Gemm(x, weight: float32), stored as bfloat16 or float16 in the checkpoint
    after   Gemm(x, Cast(weight: bfloat16)), the casts first in the graph: onnxruntime schedules
            late, so that each cast runs just before its consumer
    keeps   the weight's name and its exact numbers (a cast to float32 is exact)
    not     weights below 1 MB in float32; weights that another node reads too
    why     half the file and half the resident memory for a tower that runs once per picture,
            where a cast costs little beside its product
    """

    name = "late_cast"
    anchors = ("Gemm", "MatMul")

    def match(self, node: ir.Node, m: Matcher) -> Source:
        """The weight as the checkpoint stores it."""
        weight = node.inputs[1]
        assert weight is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        source = source_of(weight)
        stored = narrow(source) if source is not None else None
        m.check(stored is not source, "a weight widened to float32", source)
        assert stored is not None and weight.const_value is not None
        dtype = stored.parts[0][0]
        m.check(dtype.itemsize < 4, "fewer bytes in the checkpoint", dtype)
        size = weight.const_value.nbytes
        m.check(size >= LARGE, f"{LARGE} bytes or more", size)
        readers = [use.node.op_type for use in weight.uses()]
        alone = len(readers) == 1 and not weight.is_graph_output()
        m.check(alone, f"{weight.name} read by this {node.op_type} alone", readers)
        return stored

    def rewrite(self, node: ir.Node, found: Source, add: Builder) -> None:
        """Restore the stored dtype of the weight and cast it at the start of the graph."""
        weight = node.inputs[1]
        assert weight is not None
        add.before = add.graph[0]
        wide = add("Cast", [weight], {"to": ir.DataType.FLOAT}, like=weight)
        set_source(weight, found)
        node.replace_input_with(1, wide)
