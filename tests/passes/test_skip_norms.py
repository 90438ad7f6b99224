"""Residual addition and normalization as one node: what both norms have in common."""

import numpy as np
import pytest
import test_skip_layer_norm
import test_skip_rms_norm

NORMS = {module.make().name: module for module in (test_skip_layer_norm, test_skip_rms_norm)}
MISSES = [
    ("h = Add(a, b)", "h = Mul(a, b)", ""),
    ("float[B,S,16] b", "float[16] b", "a sum of equal shapes"),
    ("float[B,S,16] b", "float[B,1,16] b", "a sum of equal shapes"),
    ("axis = -1", "axis = 1", "a norm over the last axis"),
    ("(h, norm_weight", "(h, w", "a weight that is not computed"),
    ("float[16] norm_weight", "float[1] norm_weight", "weights of shape [16]"),
]


@pytest.fixture(params=NORMS.values(), ids=NORMS)
def norm(request):
    """The test module of a pass."""
    return request.param


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(norm, build, untouched, old, new, reason):
    assert old in norm.BEFORE
    text = norm.BEFORE.replace(old, new)
    if "axis = 1" in new:
        text = text.replace("float[16] norm", "float[4,16] norm")
        text = text.replace("B,S,16", "B,4,16")
    if "(h, w" in new:
        text = text.replace("early =", "w = Abs(norm_weight)\n  early =")
    untouched(norm.make(), build(text), reason)


def inputs(rng):
    for shape in ((1, 1), (3, 5), (2, 40)):
        yield {name: rng.standard_normal((*shape, 16)).astype(np.float32) for name in "ab"}


def test_numbers(norm, build, same_numbers, rng):
    same_numbers(norm.make(), build(norm.BEFORE), inputs(rng), rtol=2e-6, atol=1e-6)


def test_sum_is_bit_equal(norm, build, same_numbers, rng):
    """The residual stream does not change by a bit."""
    model = build(norm.BEFORE.replace("(float[B,S,16] y)", "(float[B,S,16] h, float[B,S,16] y)"))
    model.graph.outputs[:] = [v for v in model.graph.outputs if v.name == "h"]
    assert len(model.graph.outputs) == 1
    same_numbers(norm.make(), model, inputs(rng))


def test_two_norms_of_one_sum(norm, build, same_numbers, rng):
    """The first norm takes the sum along, the other reads it."""
    (first,) = (line for line in norm.BEFORE.splitlines() if line.startswith("  normed ="))
    second = first.replace("normed =", "second =").replace(", epsilon = 0.01", "")
    text = norm.BEFORE.replace(first, f"{first}\n{second}").replace(
        "(normed, early)", "(normed, second)"
    )
    work = norm.make()
    same_numbers(work, build(text), inputs(rng), rtol=2e-6, atol=1e-6)
    assert work.count == 1
