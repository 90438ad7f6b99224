"""A number is added to a weight once, when the package is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Shifted, Source, set_source, source_of


@dataclass(frozen=True)
class Shift:
    """A weight and its new source."""

    weight: ir.Value
    source: Source


class WeightShift(NodePass[Shift]):
    """A number added to a weight is added when the package is written.

    before  Add(weight [H], 1): a norm whose weights are stored around zero
    after   weight, its numbers larger by 1
    keeps   the weight's name and the rounded sums
    not     a weight that another node reads without the sum
    why     the graph repeats the same sum in every run, and fused norms take no computed weight
    """

    name = "weight_shift"
    anchors = ("Add",)

    def match(self, node: ir.Node, m: Matcher) -> Shift:
        """A float32 weight and a constant number."""
        a, b = node.inputs
        assert a is not None and b is not None
        weight, added = (a, b) if a.is_initializer() and source_of(a) is not None else (b, a)
        source = source_of(weight) if weight.is_initializer() else None
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        assert source is not None
        number = m.constant(added, "a number")
        m.check(number.size == 1, "one number", number.shape)
        m.check(weight.dtype == ir.DataType.FLOAT, "a float32 weight", weight.dtype)
        m.check(number.ndim <= len(source.parts[0][1]), "the weight's own shape", number.shape)
        readers = [use.node.op_type for use in weight.uses()]
        alone = len(readers) == 1 and not weight.is_graph_output()
        m.check(alone, f"{weight.name} read by this Add alone", readers)
        return Shift(weight, Shifted(source, float(number.item())))

    def rewrite(self, node: ir.Node, found: Shift, add: Builder) -> None:
        """Change the weight and drop the sum."""
        set_source(found.weight, found.source)
        replace(node.outputs[0], found.weight)
