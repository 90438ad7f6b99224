"""An embedding table in the dtype of its rows."""

import numpy as np
import pytest

from surgery.passes.weights.table_cast import TableCast

BEFORE = """
g (int64[B,S] ids, bfloat16[9,4] table_weight) => (float[B,S,4] y) {
  rows = Gather<axis = 0>(table_weight, ids)
  wide = Cast<to = 1>(rows)
  y = Neg(wide)
}
"""
MISSES = [
    ("bfloat16[9,4] table_weight", "bfloat16[9,4] table", "an initializer"),
    ("wide = Cast<to = 1>(rows)", "turned = Transpose(rows)\n  wide = Cast<to = 1>(turned)", ""),
    ("y = Neg(wide)", "again = Cast<to = 1>(rows)\n  y = Add(wide, again)", "by the cast alone"),
    ("y = Neg(wide)", "whole = Cast<to = 1>(table_weight)\n  s = ReduceSum<keepdims = 0>(whole)\n"
     "  y = Add(wide, s)", "a table read once"),
]  # fmt: skip


def make():
    return TableCast()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if new.endswith("] table"):
        text = text.replace("(table_weight", "(table")
    if "turned" in new:
        text = text.replace("=> (float[B,S,4] y)", "=> (float[U,V,W] y)")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers):
    """Bit for bit."""
    inputs = [{"ids": np.array(ids)} for ids in ([[0]], [[8, 1, 3], [2, 2, 0]], [[5], [6], [7]])]
    same_numbers(make(), build(BEFORE), inputs)
