"""A lookup in a table of 8 bits by ops that every build of onnxruntime has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

AXES = ("gather", 0), ("quantize", 1)
"""What the op's attributes of axes begin with, and their defaults."""
MIDDLE = 128
"""The code that stands for 0 in a table without zero points."""


@dataclass(frozen=True)
class Lookup:
    """A lookup in a quantized table.

    Attributes:
        codes: `[V, H]` uint8.
        ids: `[B, S]`.
        scales: `[V, H / block]`.
        zeros: `[V, H / block]` uint8, or None.
        width: H.
        block: codes that share a scale.
    """

    codes: ir.Value
    ids: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    width: int
    block: int


class PlainLookup(NodePass[Lookup]):
    """A lookup in a quantized table becomes lookups of codes, scales and zero points.

    before  GatherBlockQuantized(codes [V, H], ids, scales [V, H / n], zero_points), bits = 8
    after   (Cast(Gather(codes, ids)) - Cast(Gather(zero_points, ids))) * Gather(scales, ids),
            in blocks of n columns
    keeps   every number, bit for bit, and the names of the weights
    not     4 bits, two of which share a byte
    why     the WebAssembly build of onnxruntime that transformers.js loads has no kernel for the op
    """

    name = "plain_lookup"
    needs = ("gather_nbits",)
    anchors = ("GatherBlockQuantized",)

    def match(self, node: ir.Node, m: Matcher) -> Lookup:
        """A lookup of whole rows in a table of rank 2, with 8 bits for each code."""
        codes, ids, scales, zeros = (*node.inputs, None)[:4]
        assert codes is not None and ids is not None and scales is not None
        bits = node.attributes.get_int("bits", 4)
        m.check(bits == 8, "8 bits", bits)
        m.check(codes.dtype == ir.DataType.UINT8, "codes without a sign", codes.dtype)
        axes = [node.attributes.get_int(f"{name}_axis", d) for name, d in AXES]
        m.check(axes == [0, 1], "rows of blocks", axes)
        for value in (codes, ids, scales):
            m.rank(value, 2)
        assert codes.shape is not None
        width, block = codes.shape[1], node.attributes.get_int("block_size", 128)
        m.check(isinstance(width, int), "a known width", width)
        assert isinstance(width, int)
        m.check(width % block == 0, f"rows of whole blocks of {block}", width)
        return Lookup(codes, ids, scales, zeros, width, block)

    def rewrite(self, node: ir.Node, found: Lookup, add: Builder) -> None:
        """Look up each part, then put it together block by block."""
        assert found.ids.shape is not None and found.scales.dtype is not None
        b, s = found.ids.shape
        count, dtype = found.width // found.block, found.scales.dtype

        def ints(*numbers: int) -> ir.Value:
            return add.constant(np.array(numbers, np.int64), "ints_" + "_".join(map(str, numbers)))

        def rows(table: ir.Value, width: int) -> ir.Value:
            return add("Gather", [table, found.ids], dtype=table.dtype, shape=(b, s, width))

        def column(values: ir.Value) -> ir.Value:
            return add("Unsqueeze", [values, ints(-1)], dtype=values.dtype, shape=(b, s, count, 1))

        def number(codes: ir.Value) -> ir.Value:
            return add("Cast", [codes], {"to": dtype}, dtype=dtype, shape=codes.shape)

        blocks = (b, s, count, found.block)
        codes = rows(found.codes, found.width)
        split = add(
            "Reshape", [codes, ints(0, 0, count, found.block)], dtype=codes.dtype, shape=blocks
        )
        if found.zeros is None:
            zero = add.constant(np.array(MIDDLE, dtype.numpy()), "code_of_zero")
        else:
            zero = number(column(rows(found.zeros, count)))
        centred = add("Sub", [number(split), zero], dtype=dtype, shape=blocks)
        scaled = add("Mul", [centred, column(rows(found.scales, count))], dtype=dtype, shape=blocks)
        shape = ints(0, 0, found.width)
        out = add("Reshape", [scaled, shape], dtype=dtype, shape=(b, s, found.width))
        replace(node.outputs[0], out)
