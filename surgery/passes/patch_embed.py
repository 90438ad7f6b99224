"""The patch embedding as a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, replace
from surgery.weights import Reshaped, Source, set_source, source_of


@dataclass(frozen=True)
class Patches:
    """A convolution whose kernel covers its whole input."""

    rows: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    source: Source
    columns: int
    out: int
    end: ir.Value


class PatchEmbed(NodePass[Patches]):
    """A convolution over one patch at a time becomes a matrix product.

    before  Reshape(Conv(Reshape(pixels [P, C*t*p*p], [P, C, t, p, p]), weight), [P, H])
    after   Gemm(pixels, weight [H, C*t*p*p]^T, bias)
    keeps   the weight's name and numbers, under a shape of two axes
    not     a kernel smaller than its input; groups; padding
    why     onnxruntime unfolds every patch for a convolution; there is nothing to unfold
    """

    name = "patch_embed"
    anchors = ("Conv",)

    def match(self, node: ir.Node, m: Matcher) -> Patches:
        """A full-size kernel between two reshapes."""
        weight = node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert weight is not None
        source = source_of(weight)
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        assert source is not None
        m.check(len(weight.uses()) == 1, "a weight read once", len(weight.uses()))
        pads = node.attributes.get_ints("pads", ())
        auto = node.attributes.get_string("auto_pad", "NOTSET")
        none = not any(pads) and auto in ("NOTSET", "VALID")
        m.check(none, "no padding", (auto, pads))
        group = node.attributes.get_int("group", 1)
        m.check(group == 1, "one group", group)
        out, *kernel = source.parts[0][1]
        patch = m.producer(node.inputs[0], "Reshape")
        dims = patch.outputs[0].shape
        m.check(dims is not None and list(dims[1:]) == kernel, f"patches of {kernel}", dims)
        rows = patch.inputs[0]
        assert rows is not None
        columns = int(np.prod(kernel))
        flat = rows.shape is not None and len(rows.shape) == 2 and rows.shape[1] == columns
        m.check(flat, f"rows of {columns} pixels", rows.shape)
        end = m.user(node.outputs[0], "Reshape").outputs[0]
        m.rank(end, 2)
        assert end.shape is not None
        m.check(end.shape[1] == out, f"rows of {out}", end.shape)
        return Patches(rows, weight, bias, source, columns, out, end)

    def rewrite(self, node: ir.Node, found: Patches, add: Builder) -> None:
        """Flatten the weight, multiply."""
        set_source(found.weight, Reshaped(found.source, (found.out, found.columns)))
        inputs = [found.rows, found.weight, found.bias]
        out = add("Gemm", inputs, {"transB": 1}, like=found.end)
        replace(found.end, out)
