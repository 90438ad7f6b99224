"""The definition against scalars one block at a time, its edge cases, and ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnxruntime.capi import _pybind_state as ort_state

from quant import BlockFormat, dequantize, quantize, unpack, weight_error

TINY = float(np.finfo(np.float32).tiny)  # the smallest normal float32, 2**-126
HardRows = Callable[[int, np.random.Generator], Any]


def block_oracle(
    weights: list[float], format: BlockFormat, scales_dtype: Any
) -> tuple[np.float32, int, list[int]]:
    """`(scale, zero_point, codes)` of one block, as the docstring of `quant.definition` says."""
    top = 2**format.bits - 1
    values = [np.float32(w) for w in weights]
    largest = max(max(values), -min(values))
    if format.symmetric:
        extreme = -largest if -largest in values else largest
        scale = np.float32(extreme / np.float32(-(2 ** (format.bits - 1))))
    else:
        low, high = min(*values, np.float32(0)), max(*values, np.float32(0))
        scale = np.float32(np.float32(high - low) / np.float32(top))
    scale = np.float32(scales_dtype(scale))
    if abs(scale) < np.float32(2.0**-126):
        scale = np.float32(0)
    reciprocal = np.float32(1) / scale if scale else np.float32(0)
    zero = 2 ** (format.bits - 1)
    if not format.symmetric:
        zero = min(max(round(Fraction(float(-low * reciprocal))), 0), top)
    codes = [round(Fraction(float(w * reciprocal)) + zero) for w in values]
    return scale, zero, [min(max(code, 0), top) for code in codes]


@pytest.mark.parametrize("scales_dtype", [np.float32, np.float16])
def test_every_block_agrees_with_the_oracle(
    form: BlockFormat, scales_dtype: Any, hard_rows: HardRows
) -> None:
    k = form.block + 13
    weight = hard_rows(k, np.random.default_rng(form.block))
    if scales_dtype == np.float16:
        weight = weight[np.abs(weight).max(1) < 60000]
    blocks = quantize(weight, form, scales_dtype=scales_dtype)
    codes = unpack(blocks.packed, form.bits, form.block)
    zeros = None if blocks.zero_points is None else unpack(blocks.zero_points, form.bits, 2)
    for row in range(len(weight)):
        padded = [*weight[row].tolist(), *[0.0] * (form.block - 13)]
        for block in range(2):
            part = padded[block * form.block : (block + 1) * form.block]
            scale, zero, expected = block_oracle(part, form, scales_dtype)
            assert blocks.scales[row, block] == scale, (row, block)
            assert codes[row, block].tolist() == expected, (row, block)
            if zeros is not None:
                assert zeros[row, block] == zero, (row, block)


def test_symmetric_scale_carries_the_sign_of_the_largest_weight() -> None:
    weight = np.zeros((3, 16), np.float32)
    weight[0, 0], weight[1, 0] = 4.0, -4.0
    weight[2, :2] = 4.0, -4.0  # a tie: the negative weight wins
    blocks = quantize(weight, BlockFormat(4, 16))
    assert blocks.scales[:, 0].tolist() == [-0.5, 0.5, 0.5]
    assert unpack(blocks.packed, 4, 2)[:, 0].tolist() == [[0, 8], [0, 8], [15, 0]]
    assert dequantize(blocks)[:, :2].tolist() == [[4.0, 0.0], [-4.0, 0.0], [3.5, -4.0]]


def test_ties_go_to_the_even_code() -> None:
    weight = np.zeros((1, 16), np.float32)
    weight[0, :6] = -8, 0.5, 1.5, 2.5, -0.5, -1.5
    assert dequantize(quantize(weight, BlockFormat(4, 16)))[0, :6].tolist() == [-8, 0, 2, 2, 0, -2]
    weight[0, :6] = -5, 10, 0.5, 1.5, -0.5, -1.5  # zero point 5: code 5.5 becomes 6
    form = BlockFormat(4, 16, symmetric=False)
    assert dequantize(quantize(weight, form))[0, :6].tolist() == [-5, 10, 1, 1, -1, -1]


def test_zero_constant_and_one_signed_blocks(form: BlockFormat) -> None:
    weight = np.zeros((4, form.block), np.float32)
    weight[1:] = np.array([[0.37], [-0.37], [3e38]], np.float32)
    blocks = quantize(weight, form)
    restored = dequantize(blocks)
    assert blocks.scales[0, 0] == 0 and not np.signbit(blocks.scales[0, 0])
    assert not restored[0].any()
    if form.symmetric:
        assert np.array_equal(restored, weight)
    else:
        np.testing.assert_allclose(restored, weight, rtol=2**-23)


def test_error_is_at_most_half_a_step_or_the_clipped_end(form: BlockFormat) -> None:
    weight = np.random.default_rng(2).standard_normal((50, form.block)).astype(np.float32)
    blocks = quantize(weight, form)
    error = np.abs(weight - dequantize(blocks)) / np.abs(blocks.scales)
    # Symmetric: the end with one step less is cut by up to one step. Asymmetric: rounding the
    # zero point moves both ends by up to half a step, on top of rounding.
    assert error.max() <= 1.0 + 1e-5
    assert (error <= 0.5 + 1e-5).mean() > 0.95


def test_subnormal_scales_become_zero_and_the_smallest_normal_one_works() -> None:
    weight = np.zeros((3, 16), np.float32)
    weight[0, 0] = -8 * TINY
    weight[1, 0] = -7.9 * TINY
    weight[2, :] = np.float32(1e-45)
    blocks = quantize(weight, BlockFormat(4, 16))
    assert blocks.scales[:, 0].tolist() == [TINY, 0, 0]
    assert dequantize(blocks)[:, 0].tolist() == [-8 * TINY, 0, 0]


def test_codes_are_chosen_for_the_rounded_float16_scale() -> None:
    weight = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    weight[:, 0] = -6.123
    form = BlockFormat(8, 256)
    half = quantize(weight, form, scales_dtype=np.float16)
    assert half.scales.dtype == np.float16
    scale = half.scales.astype(np.float32)
    best = np.clip(np.rint(weight / scale), -128, 127) * scale
    assert np.mean(best != dequantize(half)) < 1e-3  # ties by division or by reciprocal
    full = quantize(weight, form)
    stale = (unpack(full.packed, 8, 256)[:, 0].astype(np.float32) - 128) * scale
    assert weight_error(weight, half).relative < np.linalg.norm(stale - weight) / np.linalg.norm(
        weight
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_narrow_weights_give_what_their_float32_values_give(dtype: Any, symmetric: bool) -> None:
    weight = (np.random.default_rng(4).standard_normal((9, 100)) * 0.02).astype(dtype)
    form = BlockFormat(4, 32, symmetric)
    narrow, wide = quantize(weight, form), quantize(weight.astype(np.float32), form)
    assert narrow.packed.tobytes() == wide.packed.tobytes()
    assert narrow.scales.tobytes() == wide.scales.tobytes()


@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx_runtime_finds_the_same_scales(symmetric: bool) -> None:
    n, k, form = 64, 256, BlockFormat(4, 32, symmetric)
    weight = np.random.default_rng(5).standard_normal((n, k)).astype(np.float32)
    packed, scales = np.zeros((n, 8, 16), np.uint8), np.zeros(n * 8, np.float32)
    zeros = np.zeros(n * 4, np.uint8)
    ort_state.quantize_matmul_4bits(
        packed, np.ascontiguousarray(weight.T), scales, zeros, 32, n, k, symmetric
    )
    ours = quantize(weight, form)
    assert np.array_equal(ours.scales.reshape(-1), scales)
    # It rounds halves away from zero and divides by no reciprocal: rarely another code.
    codes, theirs = unpack(ours.packed, 4, 32), unpack(packed, 4, 32)
    assert np.abs(codes.astype(int) - theirs).max() <= 1
    assert np.mean(codes != theirs) < 1e-3
    if ours.zero_points is not None:
        assert np.array_equal(ours.zero_points.reshape(-1), zeros)


def test_relative_error_of_normal_weights() -> None:
    weight = np.random.default_rng(6).standard_normal((256, 1024)).astype(np.float32)
    relative = {
        form: weight_error(weight, quantize(weight, form)).relative
        for form in (
            BlockFormat(4, 32),
            BlockFormat(4, 32, symmetric=False),
            BlockFormat(4, 128),
            BlockFormat(8, 32),
        )
    }
    plain = np.abs(weight.reshape(256, 32, 32)).max(-1, keepdims=True) / 7
    seven = np.rint(weight.reshape(256, 32, 32) / plain) * plain - weight.reshape(256, 32, 32)
    assert list(relative.values()) == pytest.approx([0.087, 0.080, 0.108, 0.0054], rel=0.05)
    assert relative[BlockFormat(4, 32)] < np.linalg.norm(seven) / np.linalg.norm(weight)


def test_messages_name_the_row() -> None:
    form = BlockFormat(4, 16)
    for bad in (np.nan, np.inf, -np.inf):
        weight = np.ones((5, 40), np.float32)
        weight[3, 20] = bad
        for symmetric in (True, False):
            with pytest.raises(ValueError, match="weight row 3, block 1: holds NaN or infinity"):
                quantize(weight, BlockFormat(4, 16, symmetric))
    weight = np.full((2, 16), 1e6, np.float32)
    with pytest.raises(ValueError, match=r"row 0, block 0: .* too large for a float16 scale"):
        quantize(weight, form, scales_dtype=np.float16)
    weight[1, :2] = -3e38, 3e38  # the range is beyond float32, the weights are not
    quantize(weight, form)
    with pytest.raises(ValueError, match="weight row 1, block 0"):
        quantize(weight, BlockFormat(4, 16, symmetric=False))
    with pytest.raises(TypeError, match="weight is float64, must be float32, float16 or bfloat16"):
        quantize(np.ones((2, 16)), form)
    with pytest.raises(TypeError, match="scales_dtype is float64"):
        quantize(weight, form, scales_dtype=np.float64)
    for shape in ((16,), (2, 0), (1, 2, 16)):
        with pytest.raises(ValueError, match=r"must be \[N, K\] with K > 0"):
            quantize(np.ones(shape, np.float32), form)


def test_no_rows_give_no_blocks() -> None:
    blocks = quantize(np.ones((0, 40), np.float32), BlockFormat(4, 16, symmetric=False))
    assert dequantize(blocks).shape == (0, 40)
