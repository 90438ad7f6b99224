"""Weights cast right before they are read."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from surgery.package.genai_config import CPU_SESSIONS
from surgery.passes.weights.late_cast import LateCast
from surgery.passes.weights.weight_cast import WeightCast

BEFORE = """
g (float[N,512] x, bfloat16[512,512] up_weight, bfloat16[512,512] down_weight, bfloat16[512] a_bias)
  => (float[N,512] y) {
  up = Cast<to = 1>(up_weight)
  a = Cast<to = 1>(a_bias)
  wide = Gemm<transB = 1>(x, up, a)
  h = Neg(wide)
  down = Cast<to = 1>(down_weight)
  y = MatMul(h, down)
}
"""


def make():
    return LateCast()


def prepare(model):
    """The graph as `weight_cast` leaves it."""
    WeightCast()(model)


@pytest.fixture
def build(build):
    def made(text):
        model = build(text)
        prepare(model)
        return model

    return made


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("bfloat16[512,512] up", "float[512,512] up", "fewer bytes"),
    ("h = Neg(wide)", "second = Gemm(x, up, a)\n  h = Add(wide, second)", "read by this Gemm"),
    ("512", "256", "bytes or more"),
], ids=["float32 in the checkpoint", "read twice", "small"])  # fmt: skip
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace("y = MatMul(h, down)", "y = Identity(h)").replace(old, new)
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    """The same products; onnxruntime packs constant weights and sums those in another order."""
    inputs = [{"x": rng.standard_normal((n, 512)).astype(np.float32)} for n in (1, 3, 70)]
    same_numbers(make(), build(BEFORE), inputs, rtol=1e-5, atol=1e-3)


def test_each_cast_runs_right_before_its_reader(build, run_inlined, tmp_path):
    """onnxruntime's own order, or every float32 copy would be alive at once."""
    model = build(BEFORE)
    make()(model)
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    for key, value in CPU_SESSIONS["vision"].items():
        if "." in key:
            options.add_session_config_entry(key, value)
    session = ort.InferenceSession(run_inlined(model), options, ["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((2, 512), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")]
    assert ran == ["Cast", "Gemm", "Neg", "Cast", "MatMul"]
