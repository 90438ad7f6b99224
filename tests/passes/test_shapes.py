"""Shapes that the exporter did not write down."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_fixtures import HEADER

from surgery.match.shape_inference import annotate
from surgery.passes.tidy.shapes import Shapes

BEFORE = """
g (float[B,S,12] x, float[B,3,P,4] past) => (float[B,3,T,4] present, float[B,S,12] y)
<int64 nil = {0}, int64 one = {1}, int64[1] front = {0}, int64[1] n = {3}, int64[1] free = {-1},
 int64[1] last = {2}, int64[1] far = {9223372036854775807}, int64[1] step = {1}> {
  sizes = Shape(x)
  b = Gather(sizes, nil)
  s = Gather(sizes, one)
  b1 = Unsqueeze(b, front)
  s1 = Unsqueeze(s, front)
  wide = Slice(sizes, last, far, front, step)
  d = Div(wide, n)
  split = Concat<axis = 0>(b1, s1, n, d)
  heads = Reshape(x, split)
  moved = Transpose<perm = [0, 2, 1, 3]>(heads)
  present = Concat<axis = 2>(past, moved)
  whole = Concat<axis = 0>(b1, s1, free)
  back = Transpose<perm = [0, 2, 1, 3]>(moved)
  y = Reshape(back, whole)
}
"""
KNOWN = """
g (float[B,S,12] x) => (float[B,S,12] y) <float half = {0.5}, float[B,S,12] z> {
  z = Mul(x, half)
  y = Add(z, x)
}
"""
BY_CONTENT = """
g (float[B] x) => (int64 n) {
  where = NonZero(x)
  n = Size(where)
}
"""


def make():
    return Shapes()


def silent(build, text):
    """A graph that says nothing of the values inside."""
    model = build(text)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    return model


def test_golden(build, golden):
    golden(make(), silent(build, BEFORE))


@pytest.mark.parametrize("text", [KNOWN, BY_CONTENT], ids=["known", "by content"])
def test_near_miss(build, untouched, text):
    untouched(make(), build(text), "")


def test_numbers(build, same_numbers, rng):
    inputs = [
        {
            "x": rng.standard_normal((b, s, 12)).astype(np.float32),
            "past": rng.standard_normal((b, 3, p, 4)).astype(np.float32),
        }
        for b, s, p in ((1, 1, 0), (3, 7, 2), (2, 1, 5), (1, 4, 9))
    ]
    same_numbers(make(), silent(build, BEFORE), inputs)


def test_every_value(build):
    """Ranks, dtypes and expressions in the names of the inputs; the name of an output stands."""
    model = silent(build, BEFORE)
    make()(model)
    shapes = {v.name: str(v.shape) for node in model.graph for v in node.outputs}
    assert shapes["heads"] == "[B,S,3,4]" and shapes["moved"] == "[B,3,S,4]"
    assert shapes["present"] == "[B,3,T,4]"
    assert all(v.dtype is not None for node in model.graph for v in node.outputs)
    assert not any(node.op_type in ("Slice", "Div") for node in model.graph)


OPS = """
g (float[B,3,H,W] picture, float[8,3,4,4] kernel, int64[B,S] ids, float[9,16] table, bool[S,S] seen)
=> (float a) <int64[1] last = {-1}, int64[4] pads = {0, 1, 0, 1}, int64[2] times = {1, 2},
 int64[1] k = {2}, int64[2] wide = {4, 1}, float[1] one = {1}, int64[2] half = {4, 12}> {
  patches = Conv<strides = [4, 4]>(picture, kernel)
  rows = Gather(table, ids)
  joined = Flatten<axis = 2>(rows)
  mean = ReduceMean<keepdims = 0>(rows, last)
  chosen = ArgMax<axis = -1>(rows)
  padded = Pad(table, pads)
  tiled = Tile(table, times)
  front, back = Split<axis = 1>(table, half)
  best, where = TopK(table, k)
  bias = Where(seen, one, one)
  spread = Expand(one, wide)
  a = ReduceSum<keepdims = 0>(patches)
}
"""
WANTED = {
    "patches": "[B,8,floor(H/4),floor(W/4)]", "rows": "[B,S,16]", "joined": "[B*S,16]",
    "mean": "[B,S]", "chosen": "[B,S,1]", "padded": "[9,18]", "tiled": "[9,32]", "front": "[9,4]",
    "back": "[9,12]", "best": "[9,2]", "where": "[9,2]", "bias": "[S,S]", "spread": "[4,1]",
}  # fmt: skip


def test_rules():
    """One op each, with free axes."""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + OPS))
    annotate(model)
    found = {v.name: str(v.shape) for node in model.graph for v in node.outputs}
    assert found == found | WANTED
    dtypes = {v.name: v.dtype for node in model.graph for v in node.outputs}
    assert dtypes["chosen"] == dtypes["where"] == ir.DataType.INT64
