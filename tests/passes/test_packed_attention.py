"""Attention inside the segments of a packed row."""

import re

import numpy as np
import pytest

from surgery.passes.attention.packed_attention import PackedAttention

HEADS, WIDTH = 2, 8
LAYER = """
  moved_q = Transpose<perm = [1, 0, 2]>(q)
  query = Unsqueeze(moved_q, n0)
  moved_k = Transpose<perm = [1, 0, 2]>(k)
  key = Unsqueeze(moved_k, n0)
  moved_v = Transpose<perm = [1, 0, 2]>(v)
  value = Unsqueeze(moved_v, n0)
  scores = Attention<scale = 0.3, is_causal = 0>(query, key, value, mask)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, merged)
"""
BEFORE = (
    """
g (float[P,2,8] q, float[P,2,8] k, float[P,2,8] v, int64[C] counts) => (float[P,16] y)
<int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] last = {-1}, int64 nil = {0}, int64 step = {1},
 int64[2] merged = {-1, 16}, float[P,16] y> {
  summed = CumSum(counts, nil)
  ends = Unsqueeze(summed, n0)
  length = Shape<start = 0, end = 1>(q)
  p = Squeeze(length)
  place = Range(nil, p, step)
  places = Unsqueeze(place, n1)
  reached = GreaterOrEqual(places, ends)
  number = Cast<to = 7>(reached)
  index = ReduceSum<keepdims = 0>(number, last)
  down = Unsqueeze(index, n1)
  across = Unsqueeze(index, n0)
  mask = Equal(down, across)"""
    + LAYER
    + "}\n"
).replace(", float[P,16] y> {", "> {")
MISSES = {
    "no mask": ("key, value, mask)", "key, value)", ""),
    "later segments too": ("Equal(down, across)", "GreaterOrEqual(down, across)", ""),
    "two indexes": ("Unsqueeze(index, n0)", "Unsqueeze(other, n0)", "one segment index"),
    "index along one side": ("across = Unsqueeze(index, n0)", "across = Unsqueeze(index, n1)",
                             "rows against columns"),
    "counted over places": ("(number, last)", "(number, n0)", "a count over boundaries"),
    "ends belong to the segment before": ("GreaterOrEqual(places", "Greater(places",
                                          "from GreaterOrEqual"),
    "places from 1": ("Range(nil, p", "Range(step, p1", "positions 0, 1, 2, ..."),
    "every second place": ("step = {1}", "step = {2}", "positions 0, 1, 2, ..."),
    "heads first": ("moved_q = Transpose<perm = [1, 0, 2]>(q)", "moved_q = Transpose<perm = "
                    "[2, 0, 1]>(q)", "heads moved to the front"),
    "batch axis last": ("query = Unsqueeze(moved_q, n0)", "query = Unsqueeze(moved_q, n1)",
                        "a batch axis of 1 in front"),
    "unknown heads": ("float[P,2,8]", "float[P,H,8]", "known heads and head width"),
    "causal": ("is_causal = 0", "is_causal = 1", "neither causal nor capped"),
    "softcap": ("is_causal = 0", "softcap = 2.0", "neither causal nor capped"),
    "scores read twice": ("y = Reshape(back, merged)", "m0 = ReduceMax<keepdims = 0>(scores)\n  "
                          "b1 = Add(back, m0)\n  y = Reshape(b1, merged)", "one Transpose alone"),
    "four axes": ("int64[2] merged = {-1, 16}", "int64[3] merged = {-1, 2, 8}", "of rank 2"),
}  # fmt: skip


def make():
    return PackedAttention()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "other" in new:
        text = text.replace("  down =", "  other = Neg(index)\n  down =")
    if "p1" in new:
        text = text.replace("  place =", "  p1 = Add(p, step)\n  place =")
    if "-1, 2, 8" in new:
        text = text.replace("float[P,16] y", "float[P,2,8] y")
    if "[2, 0, 1]" in new or "moved_q, n1" in new or "H" in new or "(number, n0)" in new:
        text = text.replace("float[P,16] y", "float[A,C] y")
    untouched(make(), build(text), reason)


def feeds(rng, *counts):
    shape = (sum(counts), HEADS, WIDTH)
    given = {n: rng.standard_normal(shape).astype(np.float32) for n in "qkv"}
    return {**given, "counts": np.array(counts, np.int64)}


SEGMENTS = [(5,), (4, 4), (3, 3, 3, 3), (2, 7), (7, 2), (1, 1), (1,), (1, 5, 5, 2), (16, 1, 16)]


def test_numbers(build, same_numbers, rng):
    """One segment, equal ones, unequal ones, single rows."""
    inputs = [feeds(rng, *counts) for counts in SEGMENTS]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)


def test_equal_sums_unequal_lengths(build, same_numbers, rng):
    """Lengths that merely have the right mean must not take the batched branch."""
    inputs = [feeds(rng, 2, 4, 6), feeds(rng, 4, 2, 6), feeds(rng, 6, 4, 2), feeds(rng, 4, 4, 4)]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)


def test_two_layers_share_the_segments(build, same_numbers, rng):
    again = LAYER
    for name in ("moved_", "query", "key", "value", "scores", "back", "y ="):
        again = again.replace(name, name.replace("y =", "y2 =") if "y =" in name else f"{name}2")
    again = again.replace("Attention<scale = 0.3", "Attention<scale = 0.5")
    text = BEFORE.replace("y = Reshape", "y1 = Reshape").rstrip().rstrip("}")
    text += again + "  y = Add(y1, y2)\n}\n"
    model, work = build(text), make()
    inputs = [feeds(rng, *counts) for counts in SEGMENTS[:5]]
    same_numbers(work, model, inputs, rtol=2e-5, atol=2e-6)
    assert work.count == 2
    ops = [node.op_type for node in model.graph]
    assert (ops.count("If"), ops.count("ReduceMax")) == (2, 1)


def test_default_scale(build, same_numbers, rng):
    text = BEFORE.replace("scale = 0.3, ", "")
    same_numbers(make(), build(text), [feeds(rng, 3, 4)], rtol=2e-5, atol=2e-6)


def test_two_kinds_of_segments(build, same_numbers, rng):
    """Windows beside whole frames: axes of unlike lengths must not share a name."""
    steps = BEFORE[BEFORE.index("  summed") :].rstrip().rstrip("}")
    made = "|".join(re.findall(r"^ +(\w+) = ", steps, re.MULTILINE))
    text = BEFORE.replace("int64[C] counts", "int64[C] counts, int64[C2] counts2")
    text = text.replace("(float[P,16] y)", "(float[P,16] y, float[P,16] y2)").rstrip().rstrip("}")
    model = build(text + re.sub(rf"\b({made}|counts)\b", r"\g<1>2", steps) + "}\n")
    inputs = feeds(rng, 8, 4) | {"counts2": np.array([3, 1, 4, 2, 2])}
    same_numbers(make(), model, [inputs], rtol=2e-5, atol=2e-6)
    lengths = [n.inputs[0].shape[0] for n in model.graph if n.op_type == "ReduceMax"]
    assert len({str(axis) for axis in lengths}) == 2
