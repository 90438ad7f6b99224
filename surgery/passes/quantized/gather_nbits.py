"""An embedding table in 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

import quant
from surgery.passes.quantized.blocks import Policy, block_values, quantizable
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Quantized, Source, narrow


@dataclass(frozen=True)
class Table:
    """A table and the lookup in it."""

    weight: ir.Value
    source: Source
    ids: ir.Value
    format: quant.BlockFormat
    end: ir.Value
    """The rows, after a cast where the table has another dtype."""


class GatherNBits(NodePass[Table]):
    """A lookup in an embedding table becomes a lookup in a quantized table.

    before  Gather(weight [V, H], ids), and the Cast behind it
    after   GatherBlockQuantized(weight.packed, ids, weight.scales, weight.zero_points)
    keeps   the weight's name as a prefix; a head in the same format has the same bytes, so that
            the package stores a tied table once
    not     tables that the policy leaves alone; rows that the block size does not divide
    why     the embedding table is the largest weight of a small model, and a tied one is read by
            two graphs
    """

    name = "gather_nbits"
    anchors = ("Gather",)

    def __init__(
        self, policy: Policy, dtype: ir.DataType = ir.DataType.FLOAT, *, expect: int | None = None
    ) -> None:
        """Choose formats.

        Args:
            policy: format of a table by its name.
            dtype: of the scales, and so of the rows.
        """
        super().__init__(expect=expect)
        self.policy, self.dtype = policy, dtype

    def match(self, node: ir.Node, m: Matcher) -> Table:
        """A table of rank 2, looked up along axis 0."""
        weight, ids = node.inputs
        assert weight is not None and ids is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        m.rank(weight, 2)
        axis = node.attributes.get_int("axis", 0)
        m.check(axis == 0, "rows", f"axis {axis}")
        source = quantizable(weight, m)
        format = self.policy(weight.name or "")
        m.check(format is not None, "a table that the policy quantizes", weight.name)
        assert format is not None
        width = source.parts[0][1][1]
        m.check(width % format.block == 0, f"rows of whole blocks of {format.block}", width)
        end = node.outputs[0]
        readers = end.consumers()
        if len(readers) == 1 and readers[0].op_type == "Cast":
            end = readers[0].outputs[0]
        return Table(weight, narrow(source), ids, format, end)

    def rewrite(self, node: ir.Node, found: Table, add: Builder) -> None:
        """Replace the table by its blocks."""
        blocks = Quantized(found.source, found.format, self.dtype)
        values = block_values(add.main, found.weight.name or "", blocks, flat=True)
        inputs = [values[0], found.ids, *values[1:]]
        attributes = {
            "bits": found.format.bits,
            "block_size": found.format.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        fused = add("GatherBlockQuantized", inputs, attributes, domain="com.microsoft")
        fused.type, fused.shape = ir.TensorType(self.dtype), found.end.shape
        replace(found.end, fused)
