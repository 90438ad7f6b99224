"""Embeddings and DeepStack features as one input."""

import numpy as np
import pytest

from surgery.passes.vision.joined_embeds import JoinedEmbeds

BEFORE = """
g (float[B,S,4] inputs_embeds, float[B,S,8] per_layer_inputs, int64[B,T] attention_mask)
=> (float[B,S,4] y)
<int64[2] sizes = {4, 4}> {
  h = Neg(inputs_embeds)
  first, second = Split<axis = -1>(per_layer_inputs, sizes)
  h0 = Add(h, first)
  h1 = Exp(h0)
  h2 = Add(h1, second)
  y = Mul(h2, inputs_embeds)
}
"""
MISSES = [
    ("Split<axis = -1>(per_layer_inputs", "Split<axis = -1>(moved", ""),
    ("y = Mul(h2, inputs_embeds)", "y = Mul(h2, sum)", "features split alone"),
    ("float[B,S,4] inputs_embeds", "float[B,S,1] inputs_embeds", "as wide as the embeddings"),
    ("[B,S,4] inputs_embeds", "[B,S,4] other", "an input inputs_embeds"),
    ("per_layer_inputs, sizes", "per_layer_inputs, given", "constant widths"),
]


def make():
    return JoinedEmbeds()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "moved" in new:
        text = text.replace("  first,", "  moved = Neg(per_layer_inputs)\n  first,")
    if "sum" in new:
        text = text.replace("  y =", "  sum = ReduceSum(per_layer_inputs)\n  y =")
    if "other" in new:
        text = text.replace("inputs_embeds", "other")
    if "given" in new:
        text = text.replace("int64[B,T] attention_mask", "int64[2] given")
    untouched(make(), build(text), reason)


def test_numbers(build, run, rng):
    """Bit for bit; each graph takes the inputs that it has."""
    before, after = build(BEFORE), build(BEFORE)
    make()(after)
    assert [v.name for v in after.graph.inputs] == ["inputs_embeds", "attention_mask"]
    assert str(after.graph.inputs[0].shape) == "[B,S,12]"
    for b, s in ((1, 1), (2, 3), (3, 7)):
        wide = rng.standard_normal((b, s, 12)).astype(np.float32)
        mask = np.ones((b, s), np.int64)
        narrow, levels = np.ascontiguousarray(wide[..., :4]), np.ascontiguousarray(wide[..., 4:])
        feeds = {"inputs_embeds": narrow, "per_layer_inputs": levels, "attention_mask": mask}
        want = run(before, feeds)
        assert np.array_equal(run(after, {**feeds, "inputs_embeds": wide})["y"], want["y"])
