"""Error measures against the plain formula."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import quant.errors
from quant import BlockFormat, WeightError, dequantize, quantize, weight_error


def test_measures_are_the_plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((50, 70)).astype(ml_dtypes.bfloat16)
    blocks = quantize(weight, BlockFormat(4, 32, symmetric=False))
    exact = weight.astype(np.float64)
    difference = exact - dequantize(blocks)
    for piece in (1, 1000, 1 << 18):
        monkeypatch.setattr(quant.errors, "_PIECE", piece)
        error = weight_error(weight, blocks)
        norm = np.linalg.norm(difference) / np.linalg.norm(exact)
        assert error.relative == pytest.approx(norm, rel=1e-6)
        assert error.max_error == pytest.approx(np.abs(difference).max(), rel=1e-6)


def test_errors_of_parts_add_up() -> None:
    weight = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)
    blocks = quantize(weight, BlockFormat(4, 32))
    whole = weight_error(weight, blocks)
    parts = weight_error(weight[:11], blocks.rows(0, 11)) + weight_error(
        weight[11:], blocks.rows(11, 40)
    )
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)
    assert parts.max_error == whole.max_error


def test_a_matrix_of_zeros_is_exact_and_wrong_zeros_are_infinitely_wrong() -> None:
    zeros = np.zeros((3, 16), np.float32)
    assert weight_error(zeros, quantize(zeros, BlockFormat(4, 16))).relative == 0.0
    assert WeightError() == WeightError(0.0, 0.0, 0.0)
    ones = quantize(np.ones((3, 16), np.float32), BlockFormat(4, 16))
    assert weight_error(zeros, ones).relative == math.inf


def test_shapes_must_agree() -> None:
    blocks = quantize(np.ones((3, 16), np.float32), BlockFormat(4, 16))
    with pytest.raises(ValueError, match=r"weight \(2, 16\) and blocks \(3, 16\) differ"):
        weight_error(np.ones((2, 16), np.float32), blocks)
