"""The patch embedding becomes a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Reshaped, Source, set_source, source_of


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

    before  Reshape(Conv(patches [P, C, t, p, p], weight), [P, H]) ; patches may be a Reshape of
            rows [P, C*t*p*p]
    after   Gemm(rows, weight [H, C*t*p*p]^T, bias)
    keeps   the weight's name and numbers, in two dimensions
    not     a kernel smaller than its input; groups; padding
    why     onnxruntime copies every patch (im2col) before a convolution; a product needs no copy
    """

    name = "patch_embed"
    needs = ("dims", "fold", "noop", "static_reshape")
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
        patch = node.inputs[0]
        assert patch is not None
        dims = patch.shape
        covers = dims is not None and list(dims[1:]) == kernel
        m.check(covers, f"patches of {kernel}, the size of the kernel", dims)
        rows, columns = patch, int(np.prod(kernel))
        made = patch.producer()
        flat = made.inputs[0] if made is not None and made.op_type == "Reshape" else None
        if flat is not None and flat.shape is not None and list(flat.shape[1:]) == [columns]:
            rows = flat
        end = m.user(node.outputs[0], "Reshape").outputs[0]
        m.rank(end, 2)
        assert end.shape is not None
        m.check(end.shape[1] == out, f"rows of {out}", end.shape)
        return Patches(rows, weight, bias, source, columns, out, end)

    def rewrite(self, node: ir.Node, found: Patches, add: Builder) -> None:
        """Flatten the weight and the patches, and multiply."""
        set_source(found.weight, Reshaped(found.source, (found.out, found.columns)))
        rows = found.rows
        if len(rows.shape or ()) > 2:
            flat = add.constant(np.array([-1, found.columns], np.int64), f"rows_of_{found.columns}")
            patches = rows.shape[0] if rows.shape is not None else None
            rows = add("Reshape", [rows, flat], dtype=rows.dtype, shape=(patches, found.columns))
        inputs = [rows, found.weight, found.bias]
        out = add("Gemm", inputs, {"transB": 1}, like=found.end)
        replace(found.end, out)
