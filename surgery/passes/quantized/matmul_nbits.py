"""Products with weights in 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

import quant
from surgery.passes.quantized.blocks import BlockPass, block_values, quantizable
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Source, narrow, transposed


@dataclass(frozen=True)
class Linear:
    """A product with a weight."""

    x: ir.Value
    weight: ir.Value
    source: Source
    """The weight as `[N, K]`."""
    format: quant.BlockFormat


class MatMulNBits(BlockPass[Linear]):
    """A product with a weight becomes a product with a quantized weight.

    before  MatMul(x, Transpose(weight [N, K])), or MatMul(x, weight [K, N])
    after   MatMulNBits(x, weight.packed, weight.scales, weight.zero_points)
    keeps   the weight's name as a prefix; values are those of the dequantized weight, up to the
            rounding of activations to int8 that accuracy_level 4 allows
    not     weights that the policy leaves alone; products of two activations; Gemm,
            which plain_linear makes a product
    why     the speed of decoding is that of reading the weights from memory
    """

    name = "matmul_nbits"
    anchors = ("MatMul",)

    def match(self, node: ir.Node, m: Matcher) -> Linear:
        """The weight that is the second operand, or that a Transpose makes it."""
        x, operand = node.inputs
        assert x is not None and operand is not None
        weight, turned = operand, True
        if not operand.is_initializer():
            transpose = m.producer(operand, "Transpose")
            turned = False
            assert transpose.inputs[0] is not None
            weight = transpose.inputs[0]
            m.rank(weight, 2)
            perm = transpose.attributes.get_ints("perm", (1, 0))
            m.check(list(perm) == [1, 0], "axes swapped", perm)
        m.check(weight.is_initializer(), "an initializer", weight.name)
        m.rank(weight, 2)
        source = quantizable(weight, m)
        format = self.format(weight.name or "")
        m.check(format is not None, "a weight that the policy quantizes", weight.name)
        assert format is not None
        return Linear(x, weight, narrow(transposed(source) if turned else source), format)

    def rewrite(self, node: ir.Node, found: Linear, add: Builder) -> None:
        """Replace the weight by its blocks."""
        n, k = found.source.parts[0][1]
        name = found.weight.name or ""
        blocks = self.blocks(name, found.source, found.format)
        inputs = [found.x, *block_values(add.main, name, blocks)]
        attributes = {
            "N": n,
            "K": k,
            "bits": found.format.bits,
            "block_size": found.format.block,
            "accuracy_level": self.accuracy_level,
        }
        out = node.outputs[0]
        fused = add("MatMulNBits", inputs, attributes, domain="com.microsoft", like=out)
        replace(out, fused)
