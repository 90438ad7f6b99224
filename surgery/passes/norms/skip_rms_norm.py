"""A residual addition and the RMS normalization of the sum become one node."""

from __future__ import annotations

from surgery.passes.norms.skip_layer_norm import SkipNorm


class SkipRmsNorm(SkipNorm):
    """Residual addition and RMS normalization become one node.

    before  h = a + b ; RMSNormalization(h, weight) ; h read again later
    after   SkipSimplifiedLayerNormalization(a, b, weight) -> norm, -, -, h
    keeps   the sum as a value of its own, rounded the same
    not     sums that broadcast other than over the batch; a weight that a node computes, or of
            another shape than [H], which onnxruntime refuses
    why     the sum is normalized while it is in cache
    """

    name = "skip_rms_norm"
    anchors = ("RMSNormalization", "SimplifiedLayerNormalization")
    op = "SkipSimplifiedLayerNormalization"
