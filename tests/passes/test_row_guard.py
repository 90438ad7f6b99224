"""Attention whose result is set to zero for queries that see no key."""

import numpy as np
import pytest

from surgery.passes.attention.row_guard import RowGuard

BEFORE = """
g (float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v, bool[B,1,S,T] shown)
=> (float[B,4,S,8] y)
<float zero = {0}, float one = {1}, float lowest = {-3.4e38}, int64[1] last = {-1}> {
  hidden = Not(shown)
  as_number = Cast<to = 1>(hidden)
  mask = Mul(as_number, lowest)
  kept = Cast<to = 1>(shown)
  count = ReduceSum<keepdims = 1>(kept, last)
  none = Less(count, one)
  out = Attention<is_causal = 0>(q, k, v, mask)
  y = Where(none, zero, out)
}
"""
COMPUTED = "  most = ReduceMax<keepdims = 0>(count)\n  y ="
OTHER = "bool[B,1,S,T] shown, bool[B,1,S,T] other)"
OUTPUTS = "float[B,4,S,8] y"
MISSES = {
    "another number": (BEFORE.replace("zero = {0}", "zero = {1}"), "zeros where no key"),
    "computed numbers": (BEFORE.replace("none, zero", "none, most").replace("  y =", COMPUTED),
                         "a constant where no key"),
    "no mask": (BEFORE.replace("k, v, mask)", "k, v)"), "a mask"),
    "two keys": (BEFORE.replace("one = {1}", "one = {2}"), "made of one bool"),
    "a small number": (BEFORE.replace("-3.4e38", "-1"), "made of one bool"),
    "another bool": (BEFORE.replace("bool[B,1,S,T] shown)", OTHER)
                     .replace("(shown)\n  count", "(other)\n  count"), "made of one bool"),
    "read twice": (BEFORE.replace(OUTPUTS, f"{OUTPUTS}, float[B,4,S,8] out"), "read by one Where"),
}  # fmt: skip


def make():
    return RowGuard()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = []
    for b, s, t in ((1, 1, 1), (2, 3, 5), (3, 7, 2)):
        shown = rng.random((b, 1, s, t)) < 0.5
        shown[0, 0, 0] = False  # a query that sees no key
        heads = {
            name: rng.standard_normal((b, 4, n, 8)).astype(np.float32)
            for name, n in (("q", s), ("k", t), ("v", t))
        }
        inputs.append({**heads, "shown": shown})
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)
