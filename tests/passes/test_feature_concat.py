"""One vision output."""

import numpy as np
import pytest

from surgery.passes.vision.feature_concat import FeatureConcat

BEFORE = """
g (float[M,4] a, float[M,4] b) => (float[M,4] image_features, float[2,M,4] deepstack_features)
<int64[1] front = {0}> {
  u = Unsqueeze(a, front)
  w = Unsqueeze(b, front)
  deepstack_features = Concat<axis = 0>(u, w)
  image_features = Add(a, b)
}
"""
MISSES = [
    ("deepstack_features", "others", "deepstack_features"),
    ("image_features", "others", "an output image_features"),
    ("front = {0}", "front = {1}", "levels stacked along axis 0"),
    ("u = Unsqueeze(a, front)", "u = Reshape(a, three)", "from Unsqueeze"),
    ("Concat<axis = 0>", "Concat<axis = 1>", "levels stacked along axis 0"),
    ("(float[M,4] image_features, float[2,M,4] deepstack_features)", "(float[M,4] image_features)",
     ""),
    ("(float[M,4] image_features,", "(float[M,4] more, float[M,4] image_features,",
     "two outputs"),
]  # fmt: skip


def make():
    return FeatureConcat()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    text = text.replace("front = {0}>", "front = {0}, int64[3] three = {1, -1, 4}>")
    if "{1}" in new:
        text = text.replace("float[2,M,4]", "float[A,2,4]")
    if "axis = 1" in new:
        text = text.replace("float[2,M,4]", "float[1,N,4]")
    if new.endswith("(float[M,4] image_features)"):
        text = text.replace("Add(a, b)", "ReduceSum<keepdims = 0>(deepstack_features, front)")
    if "more" in new:
        text = text.replace("  u =", "  more = Neg(a)\n  u =")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("m", [1, 5, 0, 32])
def test_numbers(build, run, rng, m):
    """The columns are the features, then each level: bit for bit."""
    given = {n: rng.standard_normal((m, 4)).astype(np.float32) for n in "ab"}
    model = build(BEFORE)
    want = run(model, given)
    make()(model)
    got = run(model, given)
    assert list(got) == ["image_features"]
    columns = np.concatenate([want["image_features"], *want["deepstack_features"]], -1)
    assert np.array_equal(got["image_features"], columns)
    assert str(model.graph.outputs[0].shape) == "[M,12]"
