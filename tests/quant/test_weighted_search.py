"""The search: never worse than rounding, as good as its definition, and better where it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import quant.weighted
from quant import BlockFormat, Blocks, dequantize, quantize, search, search_block, unpack

HardRows = Callable[[int, np.random.Generator], Any]


def block_errors(weight: Any, blocks: Blocks, importance: Any) -> Any:
    """Weighted squared error [N, blocks] in float64."""
    squares = (weight.astype(np.float64) - dequantize(blocks)) ** 2 * importance
    missing = blocks.format.blocks(blocks.k) * blocks.format.block - blocks.k
    return np.pad(squares, ((0, 0), (0, missing))).reshape(*blocks.scales.shape, -1).sum(-1)


def importances(k: int, rng: np.random.Generator) -> list[Any]:
    """Flat, spread over six orders of magnitude, with dead channels, and a single live one."""
    spread = 10.0 ** rng.uniform(-3, 3, k)
    return [np.ones(k), spread, np.where(rng.random(k) < 0.5, 0, spread), np.eye(1, k, k // 2)[0]]


@pytest.mark.parametrize("scales_dtype", [np.float32, np.float16])
def test_no_block_is_worse_than_rounding(
    form: BlockFormat, scales_dtype: Any, hard_rows: HardRows
) -> None:
    rng = np.random.default_rng(form.block)
    k = 2 * form.block + 13
    weight = np.concatenate(
        [hard_rows(k, rng), (rng.standard_t(2, (30, k)) * 0.02).astype(np.float32)]
    )
    if scales_dtype == np.float16:
        weight = weight[np.abs(weight).max(1) < 60000]
    rounded = quantize(weight, form, scales_dtype=scales_dtype)
    for importance in importances(k, rng):
        d = importance.astype(np.float32)
        found = search(weight, form, d, scales_dtype=scales_dtype)
        assert found.scales.dtype == scales_dtype
        before, after = block_errors(weight, rounded, d), block_errors(weight, found, d)
        assert (after <= before).all()
        assert (after < before).mean() > 0.1


def test_every_block_is_as_good_as_the_definition(form: BlockFormat, hard_rows: HardRows) -> None:
    rng = np.random.default_rng(form.block + 1)
    weight = hard_rows(form.block, rng)
    importance = (10.0 ** rng.uniform(-2, 2, form.block)).astype(np.float32)
    found = search(weight, form, importance)
    codes = unpack(found.packed, form.bits, form.block)[:, 0]
    errors = block_errors(weight, found, importance)[:, 0]
    same = 0
    for row in range(len(weight)):
        scale, zero, expected = search_block(weight[row], importance, form)
        restored = (expected.astype(np.float32) - np.float32(zero)) * scale
        error = (importance * (weight[row].astype(np.float64) - restored) ** 2).sum()
        largest = float(np.abs(weight[row]).max())
        noise = 1e-11 * float(importance.sum()) * largest**2  # of float32 products
        if 1e-15 < largest < 1e15:  # beyond, float32 squares decide otherwise
            assert errors[row] == pytest.approx(error, rel=1e-3, abs=noise), row
        same += np.array_equal(codes[row], expected)
    assert same >= 0.7 * len(weight)


def test_what_nothing_improves_keeps_the_bytes_of_rounding() -> None:
    form = BlockFormat(4, 32, symmetric=False)
    weight = np.zeros((3, 64), np.float32)
    weight[1] = np.tile(np.arange(16), 4) * 0.5  # on the grid
    weight[2] = np.random.default_rng(0).standard_normal(64) * 1e30  # squares overflow
    found, rounded = search(weight, form), quantize(weight, form)
    assert found.packed.tobytes() == rounded.packed.tobytes()
    assert found.scales.tobytes() == rounded.scales.tobytes()


def test_threads_and_pieces_do_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    form = BlockFormat(4, 32, symmetric=False)
    rng = np.random.default_rng(1)
    weight, d = rng.standard_normal((67, 100)).astype(np.float32), rng.random(100)
    before, expected = weight.copy(), search(weight, form, d, threads=1)
    for piece in (1, 1000):
        monkeypatch.setattr(quant.weighted, "PIECE", piece)
        found = search(weight, form, d, threads=3)
        assert found.packed.tobytes() == expected.packed.tobytes()
        assert found.scales.tobytes() == expected.scales.tobytes()
    assert np.array_equal(weight, before)


@pytest.mark.parametrize(
    ("bits", "symmetric", "share"),
    [(2, True, 0.75), (2, False, 0.75), (4, True, 0.9), (4, False, 0.9), (8, True, 1.0)],
)
def test_weighted_error_of_normal_weights_drops(bits: int, symmetric: bool, share: float) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((128, 512)).astype(np.float32)
    d = (10.0 ** rng.uniform(-2, 2, 512)).astype(np.float32)
    form = BlockFormat(bits, 32, symmetric)
    before = block_errors(weight, quantize(weight, form), d).sum()
    after = block_errors(weight, search(weight, form, d), d).sum()
    assert after < share * before


def test_messages() -> None:
    form, weight = BlockFormat(4, 16), np.ones((2, 40), np.float32)
    with pytest.raises(ValueError, match=r"importance has shape \(39,\), the weight needs \(40,\)"):
        search(weight, form, np.ones(39))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative number, NaN or infinity"):
            search(weight, form, np.full(40, bad))
    weight[1, 20] = np.nan
    with pytest.raises(ValueError, match="weight row 1, block 1: holds NaN"):
        search(weight, form)
    assert search(np.ones((0, 40), np.float32), form).n == 0
