"""Plain rotary embedding as one node."""

import numpy as np
import pytest

from surgery.passes.rotary.rotary import Rotary

BEFORE = """
g (float[P,3,8] x, float[P,4] c, float[P,4] s) => (float[P,3,8] y)
<int64[1] heads = {-2}, int64[1] zero = {0}, int64[1] half = {4}, int64[1] axis = {2},
 int64[1] far = {9223372036854775807}, int64[1] one = {1}> {
  cc = Concat<axis = -1>(c, c)
  ss = Concat<axis = -1>(s, s)
  cos = Unsqueeze(cc, heads)
  sin = Unsqueeze(ss, heads)
  straight = Mul(x, cos)
  first = Slice(x, zero, half, axis, one)
  second = Slice(x, half, far, axis, one)
  negated = Neg(second)
  turned = Concat<axis = -1>(negated, first)
  across = Mul(turned, sin)
  y = Add(straight, across)
}
"""
MISSES = [
    ("Concat<axis = -1>(negated, first)", "Concat<axis = -1>(first, negated)", ""),
    ("(negated, first)", "(negated, other)", "halves of one value"),
    ("Concat<axis = -1>(c, c)", "Concat<axis = -1>(c, s)", "the same angles twice"),
    ("Slice(x, zero, half", "Slice(x, one, half", "a first half of 4"),
    ("half, far", "half, seven", "the second half"),
    ("float[P,3,8] x", "float[P,H,8] x", "a known number of heads"),
    ("float[P,3,8] x", "float[P,3,D] x", "a known last axis"),
    ("Add(straight, across)", "Sub(straight, across)", "read by one Add alone"),
    ("straight = Mul(x, cos)", "straight = Mul(x2, cos)", "x * cos beside it"),
    ("=> (float[P,3,8] y)", "=> (float[P,3,8] y, float[P,3,8] turned)", "read by one Mul alone"),
    ("Unsqueeze(cc, heads)", "Reshape(cc, three)", "from Unsqueeze"),
    ("heads = {-2}", "heads = {0}", "room for the heads on axis 1"),
]
OTHER_AXIS = BEFORE.replace("float[P,3,8]", "float[P,8,8]").replace("axis = {2}", "axis = {1}")
OTHER_AXIS = OTHER_AXIS.replace("float[P,8,8] y", "float[U,V,W] y")
JOINED = OTHER_AXIS.replace("axis = -1>(negated", "axis = 1>(negated")
SPLIT = """
  first, second = Split<axis = -1, num_outputs = 2>(x)
"""


def make():
    return Rotary()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    text = text.replace("one = {1}>", "one = {1}, int64[1] seven = {7}, int64[3] three = {-1,1,8}>")
    if "seven" in new or "one, half" in new:
        text = text.replace("float[P,3,8] y", "float[P,3,Z] y")
    if "heads = {0}" in new:
        text = text.replace("float[P,3,8]", "float[3,3,8]").replace("[P,4]", "[3,4]")
    text = text.replace("  negated =", "  other = Slice(x2, zero, half, axis, one)\n  negated =")
    text = text.replace("  cc =", "  x2 = Abs(x)\n  cc =")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize(("text", "reason"), [
    (JOINED, "halves joined along the last axis"), (OTHER_AXIS, "slices of the last axis"),
])  # fmt: skip
def test_another_axis(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def inputs(rng):
    for p in (1, 6, 40):
        yield {
            "x": rng.standard_normal((p, 3, 8)).astype(np.float32),
            **{n: rng.uniform(-1, 1, (p, 4)).astype(np.float32) for n in "cs"},
        }


@pytest.mark.parametrize("split", [False, True])
def test_numbers(build, same_numbers, rng, split):
    """Halves by Slice or by Split."""
    text = BEFORE
    if split:
        a, b = text.index("  first ="), text.index("  negated =")
        text = text[:a] + SPLIT.lstrip("\n") + text[b:]
    same_numbers(make(), build(text), inputs(rng), rtol=0, atol=3e-7)


@pytest.mark.parametrize("split", ["axis = 0, num_outputs = 2", "axis = 2"])
def test_uneven_split(build, untouched, split):
    text = BEFORE.replace("float[P,3,8]", "float[8,3,8]").replace("[P,4]", "[8,4]")
    a, b = text.index("  first ="), text.index("  negated =")
    sizes = "(x)" if "outputs" in split else "(x, sizes)"
    text = text[:a] + f"  first, second = Split<{split}>{sizes}\n" + text[b:]
    text = text.replace("one = {1}>", "one = {1}, int64[2] sizes = {3, 5}>")
    if "outputs" in split:
        text = text.replace("float[8,3,8] y", "float[A,C,E] y")
    untouched(make(), build(text), "last axis" if "outputs" in split else "halves of 4")


@pytest.mark.parametrize("width", [128, 256])
def test_wide_heads(build, same_numbers, rng, width):
    """Head sizes of large models."""
    text = BEFORE.replace("P,3,8]", f"P,3,{width}]").replace("P,4]", f"P,{width // 2}]")
    text = text.replace("half = {4}", f"half = {{{width // 2}}}")

    def feeds(rows):
        angles = rng.standard_normal((rows, width // 2)).astype(np.float32)
        x = rng.standard_normal((rows, 3, width)).astype(np.float32)
        return {"x": x, "c": np.cos(angles), "s": np.sin(angles)}

    same_numbers(make(), build(text), [feeds(rows) for rows in (1, 7)], rtol=0, atol=1e-6)
