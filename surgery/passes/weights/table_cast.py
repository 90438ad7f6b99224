"""An embedding table is stored in the dtype in which its rows are read."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Cast, Source, set_source, source_of


class TableCast(NodePass[Source]):
    """A cast of looked-up rows becomes a table in that dtype.

    before  Cast(Gather(weight: bf16, ids))
    after   Gather(weight: float32, ids)
    keeps   the weight's name and its exact numbers
    not     a table that another node than one Gather reads
    why     a tied head reads the table in float32: with equal bytes the package stores one table;
            a second one in bf16 would add half its size
    """

    name = "table_cast"
    anchors = ("Cast",)

    def match(self, node: ir.Node, m: Matcher) -> Source:
        """The table's new source."""
        gather = m.producer(node.inputs[0], "Gather")
        weight = gather.inputs[0]
        assert weight is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        source = source_of(weight)
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        m.check(len(weight.uses()) == 1, "a table read once", len(weight.uses()))
        m.check(len(gather.outputs[0].uses()) == 1, "rows read by the cast alone", "more readers")
        assert source is not None
        return Cast(source, ir.DataType(node.attributes["to"].as_int()))

    def rewrite(self, node: ir.Node, found: Source, add: Builder) -> None:
        """Change the table, drop the cast."""
        rows = node.inputs[0]
        gather = rows.producer() if rows is not None else None
        assert rows is not None and gather is not None and gather.inputs[0] is not None
        set_source(gather.inputs[0], found)
        rows.dtype = found.parts[0][0]
        replace(node.outputs[0], rows)
