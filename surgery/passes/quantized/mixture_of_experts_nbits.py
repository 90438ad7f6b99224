"""A mixture of experts with weights in 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

import quant
from surgery.match.mixtures import DOWNWARD, UPWARD
from surgery.passes.quantized.blocks import BlockPass, block_values, quantizable
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Quantized, Source, narrow


@dataclass(frozen=True)
class Experts:
    """The weights of a mixture, and how they are quantized."""

    weights: tuple[ir.Value, ir.Value]
    sources: tuple[Source, Source]
    format: quant.BlockFormat


class MixtureOfExpertsNBits(BlockPass[Experts]):
    """The weights of a mixture of experts are quantized.

    before  MoE(x, logits, gate_up [E, 2I, H], down [E, H, I])
    after   QMoE(x, logits, gate_up.packed, .scales, down.packed, .scales, and .zero_points)
    keeps   the weights' names as prefixes, the logits, and the order of rows; values are those of
            the dequantized weights, up to rounding that accuracy_level allows
    not     weights that the policy leaves alone; rows that the block size does not divide
    why     experts hold nine tenths of the weights; each token reads those of its experts
    """

    name = "mixture_of_experts_nbits"
    anchors = ("MoE",)

    def match(self, node: ir.Node, m: Matcher) -> Experts:
        """Two weights with one format, and no bias."""
        weights, sources, formats = [], [], []
        for i in (UPWARD, DOWNWARD):
            weight = node.inputs[i]
            assert weight is not None
            source = quantizable(weight, m)
            format = self.policy(weight.name or "")
            m.check(format is not None, "a weight that the policy quantizes", weight.name)
            assert format is not None
            width = source.parts[0][1][-1]
            m.check(width % format.block == 0, f"rows of whole blocks of {format.block}", width)
            weights.append(weight)
            sources.append(narrow(source))
            formats.append(format)
        m.check(formats[0] == formats[1], "one format for both", formats)
        given = [i for i, value in enumerate(node.inputs) if value is not None]
        m.check(given == [0, 1, UPWARD, DOWNWARD], "no bias and no third weight", given)
        return Experts((weights[0], weights[1]), (sources[0], sources[1]), formats[0])

    def rewrite(self, node: ir.Node, found: Experts, add: Builder) -> None:
        """Replace the weights by their blocks."""
        upward, downward = (
            block_values(add.main, weight.name or "", self.stack(weight, source, found), flat=True)
            for weight, source in zip(found.weights, found.sources, strict=True)
        )
        x, logits = node.inputs[:2]
        inputs = [x, logits, *upward[:2], None, *downward[:2], None]
        if not found.format.symmetric:
            inputs += [None, None, None, upward[2], downward[2]]
        kept = {name: attribute.value for name, attribute in node.attributes.items()}
        attributes = kept | {
            "expert_weight_bits": found.format.bits,
            "block_size": found.format.block,
            "accuracy_level": self.accuracy_level,
            "weights_prepacked": 0,  # plain rows, not a provider's own layout
        }
        out = node.outputs[0]
        fused = add("QMoE", inputs, attributes, domain="com.microsoft", like=out)
        replace(out, fused)

    def stack(self, weight: ir.Value, source: Source, found: Experts) -> Source:
        """A weight [E, N, K] in blocks: those of the plan, or rounded as they are written."""
        known = self.plan.stack(weight.name or "", found.format) if self.plan is not None else None
        return known or Quantized(source, found.format, self.scales)
