"""Residual addition and layer normalization as one node; see test_skip_norms.py too."""

from surgery.passes.norms.skip_layer_norm import SkipLayerNorm

BEFORE = """
g (float[B,S,16] a, float[B,S,16] b, float[16] norm_weight, float[16] norm_bias) =>
 (float[B,S,16] y) {
  h = Add(a, b)
  early = Neg(h)
  normed = LayerNormalization<axis = -1, epsilon = 0.01, stash_type = 1>(h, norm_weight, norm_bias)
  mixed = Mul(normed, early)
  y = Add(h, mixed)
}
"""


def make():
    return SkipLayerNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_bias_of_one_number(build, untouched):
    assert "float[16] norm_bias" in BEFORE
    model = build(BEFORE.replace("float[16] norm_bias", "float norm_bias"))
    untouched(make(), model, "weights of shape [16]")
