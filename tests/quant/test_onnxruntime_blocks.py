"""ONNX Runtime reads the bytes as `dequantize` does, in both operators that share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from quant import BlockFormat, Blocks, Hessian, dequantize, factor, gptq, quantize_parallel


def run(op: str, inputs: dict[str, Any], blocks: Blocks, **attributes: Any) -> Any:
    """One `com.microsoft` node; `x` is fed, every other input is an initializer."""
    dtype = helper.np_dtype_to_tensor_dtype(blocks.scales.dtype)
    fed = {name: array for name, array in inputs.items() if name == "x"}
    node = helper.make_node(
        op,
        list(inputs),
        ["y"],
        domain="com.microsoft",
        bits=blocks.format.bits,
        block_size=blocks.format.block,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info("x", dtype, array.shape) for array in fed.values()],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(a, name) for name, a in inputs.items() if name not in fed],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


def matmul(x: Any, blocks: Blocks, accuracy_level: int) -> Any:
    """`x @ dequantize(blocks).T` by MatMulNBits."""
    inputs = {"x": x, "B": blocks.packed, "scales": blocks.scales}
    if blocks.zero_points is not None:
        inputs["zero_points"] = blocks.zero_points
    return run("MatMulNBits", inputs, blocks, K=blocks.k, N=blocks.n, accuracy_level=accuracy_level)


def gather(rows: Any, blocks: Blocks) -> Any:
    """`dequantize(blocks)[rows]`, with the padding, by GatherBlockQuantized."""
    inputs = {"data": blocks.gather_data, "rows": rows, "scales": blocks.scales}
    if blocks.zero_points is not None:
        inputs["zero_points"] = blocks.zero_points
    return run("GatherBlockQuantized", inputs, blocks, gather_axis=0, quantize_axis=1)


def quantized(form: BlockFormat, k: int, scales_dtype: Any = np.float32) -> Blocks:
    """Blocks of a random weight [24, k]."""
    weight = np.random.default_rng(k).standard_normal((24, k)).astype(np.float32) * 0.02
    return quantize_parallel(weight.astype(np.float32), form, scales_dtype=scales_dtype)


@pytest.mark.parametrize("accuracy_level", [0, 1, 4])
def test_matmulnbits_multiplies_by_the_dequantized_matrix(
    form: BlockFormat, accuracy_level: int
) -> None:
    rng = np.random.default_rng(0)
    for k in (form.block, 3 * form.block, form.block + 5):
        blocks = quantized(form, k)
        for m in (1, 5):
            # Integers with 127 in every block: level 4's own rounding of x to int8 is exact.
            x = rng.integers(-127, 128, (m, k)).astype(np.float32)
            x[:, :: form.block] = 127
            weight = dequantize(blocks).astype(np.float64)
            bound = np.abs(x) @ np.abs(weight).T * k * 2.0**-24
            error = np.abs(matmul(x, blocks, accuracy_level) - x @ weight.T)
            assert (error <= bound).all(), (k, m)


@pytest.mark.parametrize("scales_dtype", [np.float32, np.float16])
def test_gatherblockquantized_returns_the_dequantized_rows(
    form: BlockFormat, scales_dtype: Any
) -> None:
    rows = np.array([0, 23, 5, 5], np.int64)
    for k in (3 * form.block, 2 * form.block + 5):
        blocks = quantized(form, k, scales_dtype)
        found = gather(rows, blocks)
        assert found.shape == (4, form.blocks(k) * form.block)
        assert np.array_equal(found[:, :k], dequantize(blocks)[rows].astype(scales_dtype))
        assert not found[:, k:].any()


def test_a_wrong_nibble_order_would_show() -> None:
    blocks = quantized(BlockFormat(4, 32), 64)
    swapped: Any = (blocks.packed >> 4) | (blocks.packed << 4)
    wrong = Blocks(swapped, blocks.scales, None, blocks.format, 64)
    rows = np.arange(24)
    assert not np.allclose(gather(rows, wrong), dequantize(blocks), atol=1e-2)


def test_the_schema_of_this_runtime_is_the_one_followed() -> None:
    schema = next(s for s in get_all_operator_schema() if s.name == "MatMulNBits")
    text = " ".join(i.description for i in schema.inputs)
    assert "(N, k_blocks, blob_size)" in text and "blob_size = (block_size * bits / 8)" in text
    assert "(N, ceil(k_blocks * bits / 8))" in text


@pytest.mark.parametrize("accuracy_level", [0, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gain_of_gptq_survives_the_kernel(accuracy_level: int, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    k, form = 300, BlockFormat(4, 32, symmetric)
    mixing = np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k)
    x = (rng.standard_normal((1200, k)) @ mixing).astype(np.float32)
    seen, unseen = x[:1000], x[1000:]
    weight = rng.standard_normal((24, k)).astype(np.float32) * np.float32(0.02)
    hessian = Hessian(k)
    hessian.add(seen)
    blocks = gptq(weight, factor(hessian.estimate()), form)
    exact = unseen @ weight.T
    error, plain = (
        np.linalg.norm(matmul(unseen, b, accuracy_level) - exact)
        for b in (blocks, quantize_parallel(weight, form))
    )
    assert error < 0.9 * plain
