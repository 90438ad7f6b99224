"""Rows picked of a quantized table."""

import numpy as np
import pytest

import quant
from surgery.passes.quantized.gather_nbits import GatherNBits
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.passes.weights.weight_cast import WeightCast
from surgery.rewrite.weights import RowTensor

BEFORE = """
g (int64[B,S] ids, bfloat16[20,64] table_weight) => (float[B,S,64] y) {
  rows = Gather<axis = 0>(table_weight, ids)
  wide = Cast<to = 1>(rows)
  y = Neg(wide)
}
"""
FORMATS = [quant.BlockFormat(bits, block, symmetric) for bits, block, symmetric in (
    (4, 32, True), (4, 16, False), (8, 32, False), (8, 64, True),
)]  # fmt: skip
MISSES = [
    ("bfloat16[20,64] table_weight", "bfloat16[20,64] table", ""),
    ("table_weight", "kept_weight", "a table that the policy quantizes"),
    ("axis = 0", "axis = 1", "rows"),
    ("bfloat16[20,64]", "bfloat16[20,48]", "rows of whole blocks of 32"),
    ("bfloat16[20,64]", "bfloat16[20,2,32]", "of rank 2"),
]


def make():
    return GatherNBits(lambda name: None if "kept" in name else FORMATS[0])


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new).replace("=> (float[B,S,64] y)", "=> (float[T,U,V] y)")
    if new.endswith("] table"):
        text = text.replace("(table_weight", "(table")
    if "20,2" in new:
        text = text.replace("float[T,U,V]", "float[T,U,V,W]")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float"])
def test_numbers(build, run, form, dtype):
    """The rows are those of the unpacked table, bit for bit."""
    text = BEFORE.replace("bfloat16", dtype)
    if dtype == "float":
        text = text.replace("  wide = Cast<to = 1>(rows)\n", "").replace("Neg(wide)", "Neg(rows)")
    model = build(text)
    stored = model.graph.initializers["table_weight"].const_value.numpy()
    GatherNBits(lambda name: form)(model)
    want = quant.dequantize(quant.quantize(stored.astype(np.float32), form))
    for ids in ([[0]], [[19, 1, 3], [2, 2, 0]], [[5], [6], [7]]):
        got = run(model, {"ids": np.array(ids)})["y"]
        assert np.array_equal(got, -want[np.array(ids)])


def test_same_bytes_as_a_head(build):
    """A head of the same weight, quantized alike, has equal sources: stored once."""
    head = """
    g (float[B,S,64] x, bfloat16[20,64] table_weight) => (float[B,S,20] y) {
      w = Cast<to = 1>(table_weight)
      turned = Transpose<perm = [1, 0]>(w)
      y = MatMul(x, turned)
    }
    """
    table, product = build(BEFORE), build(head)
    make()(table)
    WeightCast()(product)
    MatMulNBits(lambda name: FORMATS[0])(product)
    for part in ("packed", "scales"):
        tensors = [m.graph.initializers[f"table_weight.{part}"].const_value
                   for m in (table, product)]  # fmt: skip
        assert all(isinstance(tensor, RowTensor) for tensor in tensors)
        assert tensors[0].source == tensors[1].source and tensors[0].part == tensors[1].part
