"""Nodes without effect."""

import numpy as np
import pytest

from surgery.passes.tidy.noop import Noop

BEFORE = """
g (float[B,S,4] x, float[B,S,4] z) => (float[B,S,4] y)
<int64[1] zero = {0}, int64[1] far = {9223372036854775807}, int64[1] last = {2}, int64[1] one = {1},
 float unit = {1}, float nil = {0}, int64[3] own = {1, 1, 4}> {
  start = Neg(x)
  all = Slice(start, zero, far, last, one)
  still = Transpose<perm = [0, 1, 2]>(all)
  spread = Expand(still, own)
  same = Cast<to = 1>(spread)
  scaled = Mul(unit, same)
  moved = Add(scaled, nil)
  part = Div(moved, unit)
  y = Add(part, z)
}
"""


def single(line, constants="", out="float[B,S,4] y", given="x = Neg(input)"):
    """One node `line` on x, which is computed: only then could a graph output be renamed."""
    constants = constants or "float unused = {0}"
    source = "input" if given else "x"
    return f"g (float[B,S,4] {source}) => ({out}) <{constants}> {{ {given} {line} }}"


SLICE = "int64[1] s = {%d}, int64[1] e = {%d}, int64[1] a = {2}, int64[1] t = {%d}"
FAR = 2**63 - 1
MISSES = {
    "starts later": (single("y = Slice(x, s, e, a, t)", SLICE % (1, FAR, 1), "float[B,S,3] y"), ""),
    "ends before": (
        single("y = Slice(x, s, e, a, t)", SLICE % (0, -1, 1), "float[B,S,3] y"),
        "open ends",
    ),
    "every second": (
        single("y = Slice(x, s, e, a, t)", SLICE % (0, FAR, 2), "float[B,S,2] y"),
        "steps of 1",
    ),
    "axes swapped": (single("y = Transpose<perm = [1, 0, 2]>(x)", out="float[S,B,4] y"), ""),
    "axes reversed": (single("y = Transpose(x)", out="float[4,S,B] y"), ""),
    "grows": (
        single("y = Expand(x, n)", "int64[4] n = {2, 1, 1, 1}", "float[2,B,S,4] y"), "leaves"),
    "repeats a dimension": (
        single("p = ReduceSum(x, i)\n y = Expand(p, n)",
               "int64[1] i = {2}, int64[3] n = {1, 1, 7}", "float[B,S,7] y"), "leaves"),
    "two of a named dimension": (
        single("y = Expand(x, n)", "int64[3] n = {2, 1, 1}", "float[C,S,4] y"), "leaves"),
    "another dtype": (single("y = Cast<to = 11>(x)", out="double[B,S,4] y"), ""),
    "times two": (single("y = Mul(x, k)", "float k = {2}"), ""),
    "times a row of ones": (single("y = Mul(x, k)", "float[4] k = {1, 1, 1, 1}"), ""),
    "times a one that adds an axis": (
        single("y = Mul(x, k)", "float[1,1,1,1] k = {1}", "float[1,B,S,4] y"), ""),
    "plus one": (single("y = Add(x, k)", "float k = {1}"), ""),
    "times zero": (single("y = Mul(x, k)", "float k = {0}"), ""),
    "one over x": (single("y = Div(k, x)", "float k = {1}"), ""),
    "input as output": (
        single("y = Cast<to = 1>(x)", given=""), "an output computed by another node"),
    "input as output, two steps": (
        single("i = Mul(x, k)\n y = Mul(i, k)", "float k = {2}", "float[B,S,4] y"), ""),
    "two outputs": (
        single("z = Neg(x)\n y = Cast<to = 1>(z)", out="float[B,S,4] y, float[B,S,4] z"),
        "an output computed by another node"),
}  # fmt: skip


def make():
    return Noop()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_chain_from_input_to_output(build, same_numbers):
    """Only the last of the chain stays: a graph output needs a node."""
    model = build(single("i = Cast<to = 1>(x)\n y = Mul(i, k)", "float k = {1}", given=""))
    same_numbers(make(), model, [{"x": np.ones((2, 3, 4), np.float32)}])
    assert len(model.graph) == 1


def test_output_after_computation(build, same_numbers):
    """The output keeps its name when its node goes."""
    model = build(single("i = Neg(x)\n y = Cast<to = 1>(i)"))
    same_numbers(make(), model, [{"input": np.ones((2, 3, 4), np.float32)}])
    assert [node.op_type for node in model.graph] == ["Neg", "Neg"]


def test_numbers(build, same_numbers, rng):
    inputs = [
        {name: rng.standard_normal((*shape, 4)).astype(np.float32) for name in "xz"}
        for shape in ((1, 1), (3, 5), (2, 0))
    ]
    same_numbers(make(), build(BEFORE), inputs)
