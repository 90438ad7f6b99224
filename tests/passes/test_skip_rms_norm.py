"""Residual addition and RMS normalization as one node; see test_skip_norms.py too."""

from surgery.passes.norms.skip_rms_norm import SkipRmsNorm

BEFORE = """
g (float[B,S,16] a, float[B,S,16] b, float[16] norm_weight) => (float[B,S,16] y) {
  h = Add(a, b)
  early = Neg(h)
  normed = RMSNormalization<axis = -1, epsilon = 0.01, stash_type = 1>(h, norm_weight)
  mixed = Mul(normed, early)
  y = Add(h, mixed)
}
"""


def make():
    return SkipRmsNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))
