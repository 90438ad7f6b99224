"""What the table of a build says about matrices that stay in float."""

from __future__ import annotations

import pytest
from weighted_graph import write

from surgery.calibrate.plan import Plan, Row
from surgery.engine.loading import load_any
from surgery.jobs.left_float import float_weights
from surgery.jobs.quantization import summary

GRAPH = """<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
g (float[rows,64] x, float[64,8] w_router, float[8,64] w_moved, float[64,64] w_kept,
   float[512] w_norm, float[40,64] w_table, float[64,2,1] w_scales, uint8[64,2,16] codes,
   int64[rows] ids) => (float[rows,8] a, float[rows,8] b, float[rows,64] c, float[rows,64] d,
   float[rows,64] e, float[512] f) {
  a = MatMul(x, w_router)
  turned = Transpose<perm = [1, 0]>(w_moved)
  same = Identity(turned)
  b = MatMul(x, same)
  c = MatMul(x, w_kept)
  d = Gather(w_table, ids)
  e = com.microsoft.MatMulNBits<K = 64, N = 64, bits = 4, block_size = 32>(x, codes, w_scales)
  f = Neg(w_norm)
}"""


@pytest.fixture
def model(tmp_path):
    return load_any(write(GRAPH, tmp_path / "graph.onnx"), weight=1)


def test_kinds(model, monkeypatch):
    """Each weight with the op that computes with it, vectors apart, scales not at all."""
    monkeypatch.setattr("surgery.jobs.left_float.WEIGHT", 256)
    found = {name: node and node.op_type for name, _, node in float_weights(model)}
    assert found == {
        "w_router": "MatMul", "w_moved": "MatMul", "w_kept": "MatMul", "w_norm": None,
        "w_table": "Gather",
    }  # fmt: skip


def test_the_line_of_a_build(model):
    """Products alone count, without those that were named to stay in float."""
    kept = Plan({}, (Row("w_kept", (64, 64), None, None, 0, 0.0),), 4.0)
    (line,) = summary(kept, [model])[1:]
    assert line == "not quantized: 2 matrices (0.0 MB), routers among them"
    (line,) = summary(Plan({}, (), 4.0), [model])[1:]
    assert line == "not quantized: 3 matrices (0.0 MB), routers among them"
