"""Reshapes of reshapes."""

import numpy as np
import pytest

from surgery.passes.tidy.reshape_chain import ReshapeChain

BEFORE = """
g (float[P,12] x, float[P,12] z) => (float[P,3,4] y, float[P,12] same)
<int64[3] a = {1, -1, 12}, int64[3] b = {-1, 3, 4}, int64[2] c = {-1, 12}, int64[1] zero = {0},
 float[P,12] back> {
  row = Reshape(x, a)
  y = Reshape(row, b)
  lifted = Unsqueeze(z, zero)
  back = Reshape(lifted, c)
  same = Neg(back)
}
"""
ZEROS = """
g (float[P,12] x) => (float[P,2,6] y) <int64[3] a = {-1, 4, 3}, int64[3] b = {0, 2, 6}> {
  parts = Reshape(x, a)
  y = Reshape(parts, b)
}
"""
COMPUTED = """
g (float[P,12] x, int64[3] b) => (float[Q,R,T] y) <int64[3] a = {-1, 4, 3}> {
  parts = Reshape(x, a)
  y = Reshape(parts, b)
}
"""
BETWEEN = """
g (float[P,12] x) => (float[P,2,6] y) <int64[3] a = {-1, 4, 3}, int64[3] b = {-1, 2, 6}> {
  parts = Reshape(x, a)
  turned = Transpose<perm = [0, 2, 1]>(parts)
  y = Reshape(turned, b)
}
"""


SAME_INSIDE = """
g (float[P,12] x) => (float[P,3,4] y)
<int64[2] a = {-1, 12}, int64[3] b = {-1, 3, 4}, float[P,12] same> {
  row = Neg(x)
  same = Reshape(row, a)
  y = Reshape(same, b)
}
"""
LONG = """
g (float[P,12] x) => (float[P,3,4] y)
<int64[3] a = {-1, 4, 3}, int64[1] b = {-1}, int64[2] c = {-1, 12}, int64[3] d = {-1, 3, 4}> {
  one = Reshape(x, a)
  two = Reshape(one, b)
  three = Reshape(two, c)
  y = Reshape(three, d)
}
"""


def make():
    return ReshapeChain()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), [
    (ZEROS, "a final shape without 0"), (COMPUTED, "a final shape without 0"), (BETWEEN, ""),
], ids=["zeros", "computed", "transposed between"])  # fmt: skip
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_graph_output_keeps_its_node(build, untouched):
    """A reshape to its own shape stays where a graph input would become a graph output."""
    text = "g (float[P,12] x) => (float[P,12] y) <int64[2] b = {-1, 12}> { y = Reshape(x, b) }"
    untouched(make(), build(text), "")


def test_inner_read_twice(build, same_numbers, rng):
    """The inner reshape stays for its other reader."""
    text = BEFORE.replace("same = Neg(back)", "same = Mul(back, more)")
    text = text.replace("back = Reshape", "more = ReduceMax<keepdims = 0>(row)\n  back = Reshape")
    model = build(text)
    same_numbers(make(), model, inputs(rng))
    assert [n.op_type for n in model.graph].count("Reshape") == 2


def inputs(rng):
    for p in (1, 3, 8):
        yield {name: rng.standard_normal((p, 12)).astype(np.float32) for name in "xz"}


def test_numbers(build, same_numbers, rng):
    same_numbers(make(), build(BEFORE), inputs(rng))


def test_five_in_a_row(build, same_numbers, rng):
    text = """
    g (float[P,12] x) => (float[Q,8] y)
    <int64[3] a = {1, -1, 12}, int64[3] b = {-1, 3, 4}, int64[1] c = {-1}, int64[2] d = {-1, 8}> {
      v1 = Reshape(x, a)
      v2 = Reshape(v1, b)
      v3 = Reshape(v2, c)
      v4 = Reshape(v3, a)
      y = Reshape(v4, d)
    }
    """
    model = build(text)
    same_numbers(make(), model, [{"x": np.ones((p, 12), np.float32)} for p in (2, 4, 10)])
    assert len(model.graph) == 1


@pytest.mark.parametrize(("text", "sites"), [(SAME_INSIDE, 2), (LONG, 3)])
def test_only_the_last_stays(build, text, sites):
    """In one run, and whatever an inner reshape that goes was to an outer one."""
    model, work = build(text), make()
    work(model)
    assert (work.count, [n.op_type for n in model.graph].count("Reshape")) == (sites, 1)
    again = make()
    again(model)
    assert again.count == 0
