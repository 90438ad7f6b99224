"""A quantized lookup in ops that every build of onnxruntime has."""

import numpy as np
import pytest

from surgery.passes.quantized.plain_lookup import PlainLookup

BEFORE = """
g (int64[B,S] input_ids, uint8[9,64] codes, float[9,2] scales, uint8[9,2] zeros)
=> (float[B,S,64] y) {
  rows = com.microsoft.GatherBlockQuantized<bits = 8, block_size = 32, gather_axis = 0,
    quantize_axis = 1>(codes, input_ids, scales, zeros)
  y = Neg(rows)
}
"""
SYMMETRIC = BEFORE.replace(", zeros)", ")").replace(", uint8[9,2] zeros", "")
MISSES = [
    ("bits = 8, ", "bits = 4, ", ""),
    ("gather_axis = 0", "gather_axis = 1", "rows of blocks"),
    ("int64[B,S] input_ids", "int64[S] input_ids", "of rank 2"),
]


def prepare(model):
    """The text format infers no shape behind an op of another domain."""
    rows = model.graph[0].outputs[0]
    rows.dtype, rows.shape = model.graph.outputs[0].dtype, model.graph.outputs[0].shape


def make():
    return PlainLookup()


def made(build, text):
    model = build(text)
    prepare(model)
    return model


def test_golden(build, golden):
    golden(make(), made(build, BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "int64[S]" in new:
        text = text.replace("float[B,S,64] y", "float[S,64] y")
    untouched(make(), made(build, text), reason)


@pytest.mark.parametrize("text", [BEFORE, SYMMETRIC], ids=["zero points", "symmetric"])
def test_numbers(build, same_numbers, rng, text):
    """Bit for bit."""
    feeds = [
        {
            "input_ids": rng.integers(0, 9, shape),
            "codes": rng.integers(0, 256, (9, 64)).astype(np.uint8),
            "scales": rng.standard_normal((9, 2)).astype(np.float32),
            "zeros": rng.integers(0, 256, (9, 2)).astype(np.uint8),
        }
        for shape in ((1, 1), (2, 5), (3, 1))
    ]
    same_numbers(make(), made(build, text), feeds)
