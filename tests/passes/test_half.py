"""Products in float16."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.passes.weights.half import Half
from surgery.rewrite import view

ROUNDING = 4e-3
"""Measured: 2.4e-3, with outputs up to 10."""
BEFORE = """
g (float[B,S,8] x, float[8] norm_weight, float[8,16] up_weight, float[16,8] down_weight)
=> (float[B,S,8] y) <float[B,S,16] act> {
  normed = RMSNormalization<axis = -1>(x, norm_weight)
  up = MatMul(normed, up_weight)
  act = com.microsoft.QuickGelu<alpha = 1.0>(up)
  down = MatMul(act, down_weight)
  y = Add(x, down)
}
"""


def make():
    return Half()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_near_miss(build, untouched):
    """Nothing to compute: sums, products of numbers and norms stay in float32."""
    text = """
    g (float[B,S,8] x, float[8] norm_weight) => (float[B,S,8] y) {
      normed = RMSNormalization<axis = -1>(x, norm_weight)
      scaled = Mul(normed, x)
      y = Add(x, scaled)
    }
    """
    untouched(make(), build(text), "")


def test_no_kernel(build, untouched):
    """A provider without any float16 kernel."""
    untouched(Half(lambda op: False), build(BEFORE), "")


def test_one_kernel_less(build, same_numbers, rng):
    """What the provider lacks stays in float32, between casts."""
    work = Half(lambda op: op != "QuickGelu")
    model = build(BEFORE)
    same_numbers(work, model, inputs(rng), atol=ROUNDING)
    (gelu,) = (node for node in model.graph if node.op_type == "QuickGelu")
    assert gelu.inputs[0].dtype == gelu.outputs[0].dtype == ir.DataType.FLOAT
    assert work.count == 2


def inputs(rng):
    for shape in ((1, 1), (3, 5), (2, 17)):
        yield {"x": rng.standard_normal((*shape, 8)).astype(np.float32)}


def test_numbers(build, same_numbers, rng):
    """Within float16's rounding of sums of 16; the residual itself is not rounded."""
    same_numbers(Half(lambda op: op != "QuickGelu"), build(BEFORE), inputs(rng), atol=ROUNDING)


class Off(Half):
    """Makes one weight too large by a four-hundredth."""

    def apply(self, model):
        count = super().apply(model)
        weight = model.graph.initializers["down_weight"]
        array = weight.const_value.numpy() * np.float16(1.0025)
        weight.const_value = ir.Tensor(array, name=weight.name)
        return count


def test_numbers_show_a_wrong_scale(build, same_numbers, rng):
    """The tolerance is that of rounding: a quarter of a percent is beyond it."""
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        same_numbers(Off(lambda op: op != "QuickGelu"), build(BEFORE), inputs(rng), atol=ROUNDING)


def test_dtypes(build):
    model = build(BEFORE)
    make()(model)
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    dtypes = {name: v.dtype for name, v in model.graph.initializers.items()}
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    assert dtypes == {"norm_weight": full, "up_weight": half, "down_weight": half}
    casts = [n for n in model.graph if n.op_type == "Cast"]
    assert len(casts) == 2, view.text(model)


def test_the_choice_of_experts_stays_float32(build):
    model = build("""
g (float[T,16] x, float[4,16] router_weight, float[4,16,16] both_weight, float[4,16,8] down_weight)
  => (float[T,16] y) {
  logits = Gemm<transB = 1>(x, router_weight)
  y = com.microsoft.MoE<k = 2, activation_type = "swiglu", swiglu_fusion = 1,
      normalize_routing_weights = 1>(x, logits, both_weight, , down_weight)
}
""")
    work = Half()
    work(model)
    assert work.count == 1
    gemm, mixture = (next(n for n in model.graph if n.op_type == op) for op in ("Gemm", "MoE"))
    assert gemm.inputs[1].dtype == gemm.outputs[0].dtype == ir.DataType.FLOAT
    given = {value.dtype for value in mixture.inputs if value is not None}
    assert given == {ir.DataType.FLOAT16}
