"""A residual addition and the RMS normalization that reads it, as one node."""

from __future__ import annotations

from surgery.passes.norms.skip_layer_norm import SkipNorm


class SkipRmsNorm(SkipNorm):
    """Residual addition and RMS normalization become one node.

    before  h = a + b ; RMSNormalization(h, weight) ; h read again later
    after   SkipSimplifiedLayerNormalization(a, b, weight) -> norm, -, -, h
    keeps   the sum as a value of its own, rounded the same
    not     sums that broadcast otherwise than over the batch; a norm of something else
    why     the sum is normalized while it is in cache
    """

    name = "skip_rms_norm"
    anchors = ("RMSNormalization", "SimplifiedLayerNormalization")
    op = "SkipSimplifiedLayerNormalization"
