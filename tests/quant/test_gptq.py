"""GPTQ against its definition, against the best of all codes, and against rounding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import quant.compensation
import quant.descent
from quant import (
    BlockFormat,
    dequantize,
    descend,
    factor,
    gptq,
    gptq_definition,
    output_error,
    quantize,
    search,
    unpack,
    worst_blocks,
)


def layer(n: int, k: int, seed: int = 0) -> tuple[Any, Any]:
    """A weight [n, k] and the Hessian of correlated inputs, some channels far larger."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) / np.sqrt(k) + np.eye(k)
    x = rng.standard_normal((4 * k, k)) @ mixing * 10.0 ** rng.uniform(-0.7, 0.7, k)
    weight = (rng.standard_t(4, (n, k)) * 0.02).astype(np.float32)
    return weight, (x.T @ x / len(x)).astype(np.float32)


def damped(h: Any, damping: float = 0.01) -> Any:
    return h + np.float32(damping) * h.diagonal().mean() * np.eye(len(h), dtype=np.float32)


def loss(weight: Any, blocks: Any, h: Any) -> Any:
    """e @ h @ e of each row, in float64."""
    error = weight.astype(np.float64) - dequantize(blocks)
    return np.einsum("nk,kl,nl->n", error, h.astype(np.float64), error)


def test_it_agrees_with_the_definition(form: BlockFormat) -> None:
    k = form.block + 21
    weight, h = layer(40, k, form.block)
    for order in (None, np.arange(k), np.random.default_rng(0).permutation(k)):
        found_factor = factor(h, order=order)
        found = gptq(weight, found_factor, form)
        expected = gptq_definition(weight, damped(h), found_factor.order, found)
        codes, theirs = (unpack(b.packed, form.bits, form.block) for b in (found, expected))
        # A sum that float32 rounds to the other side of a middle changes the rest of its row.
        assert (codes == theirs).all((1, 2)).mean() >= 0.9
        assert loss(weight, found, h).sum() == pytest.approx(
            loss(weight, expected, h).sum(), rel=0.02
        )


@pytest.mark.parametrize("scales_dtype", [np.float32, np.float16])
def test_the_output_error_drops(form: BlockFormat, scales_dtype: Any) -> None:
    weight, h = layer(48, 2 * form.block + 9, form.block)
    rounded = quantize(weight, form, scales_dtype=scales_dtype)
    found = gptq(weight, factor(h), form, scales_dtype=scales_dtype)
    further = descend(weight, found, h)
    assert found.scales.dtype == further.scales.dtype == scales_dtype
    losses = [loss(weight, blocks, h).sum() for blocks in (rounded, found, further)]
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] <= losses[1] * 1.001  # the damped loss is what may not rise
    before, after = loss(weight, found, damped(h)), loss(weight, further, damped(h))
    assert (after <= before * (1 + 1e-4)).all()


def test_two_columns_get_the_codes_that_minimize_the_error() -> None:
    """With an order of two live columns, GPTQ is exact for the second given the first."""
    form = BlockFormat(4, 16)
    weight = np.zeros((1, 16), np.float32)
    weight[0, :3] = -8, 3.4, 2.45  # scale 1
    h = np.eye(16, dtype=np.float32)
    h[1, 2] = h[2, 1] = 0.9
    order = np.r_[0, 1, 2, 3:16]
    plain = factor(h, damping=0, order=order)
    found = dequantize(gptq(weight, plain, form, grid=quantize(weight, form)))
    best = min(
        itertools.product(range(-8, 8), repeat=2),
        key=lambda q: np.einsum("i,ij,j", e := weight[0, 1:3] - q, h[1:3, 1:3], e),
    )
    assert found[0, :3].tolist() == [-8, *best] == [-8, 3, 3]  # rounding gives 3, 2


def test_a_diagonal_hessian_leaves_rounding_to_the_grid() -> None:
    weight, _ = layer(30, 100)
    form = BlockFormat(4, 32, symmetric=False)
    diagonal = np.random.default_rng(0).uniform(1, 2, 100).astype(np.float32)
    found = gptq(weight, factor(np.diag(diagonal), damping=0), form)
    expected = search(weight, form, diagonal)
    assert np.mean(found.packed != expected.packed) < 1e-3


def test_dead_columns_and_rows_of_zeros() -> None:
    weight, h = layer(20, 64)
    h[[5, 40]] = 0
    h[:, [5, 40]] = 0
    weight[3] = 0
    weight[4, :32] = 0
    form = BlockFormat(4, 32, symmetric=False)
    grid = quantize(weight, form)
    found = gptq(weight, factor(h), form, grid=grid)
    restored = dequantize(found)
    assert np.array_equal(restored[:, [5, 40]], dequantize(grid)[:, [5, 40]])
    assert not restored[3].any() and not restored[4, :32].any()
    assert np.isfinite(dequantize(descend(weight, found, h))).all()


def test_padding_dequantizes_to_zero() -> None:
    weight, h = layer(6, 41)
    for symmetric in (True, False):
        form = BlockFormat(4, 32, symmetric)
        for blocks in (gptq(weight, factor(h), form), descend(weight, quantize(weight, form), h)):
            whole = type(blocks)(blocks.packed, blocks.scales, blocks.zero_points, form, 64)
            assert not dequantize(whole)[:, 41:].any()


def test_pieces_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = layer(33, 90)
    form = BlockFormat(4, 16, symmetric=False)
    whole = gptq(weight, factor(h), form)
    further = descend(weight, whole, h)
    monkeypatch.setattr(quant.compensation, "ROWS_BYTES", 4 * 90 * 7)
    monkeypatch.setattr(quant.descent, "ROWS_BYTES", 4 * 90 * 7)
    # Matrix products of other shapes may round otherwise.
    assert np.mean(gptq(weight, factor(h), form).packed != whole.packed) < 0.02
    assert np.mean(descend(weight, whole, h).packed != further.packed) < 0.02


def test_descent_from_rounding_never_raises_a_rows_loss(form: BlockFormat) -> None:
    weight, h = layer(40, form.block + 5, form.block)
    start = quantize(weight, form)
    for scales in (True, False):
        found = descend(weight, start, h, sweeps=3, scales=scales)
        before, after = loss(weight, start, damped(h)), loss(weight, found, damped(h))
        assert (after <= before * (1 + 1e-4)).all()
        if form.bits == 4:
            assert after.sum() < 0.9 * before.sum()
        if not scales:
            assert np.array_equal(found.scales, start.scales)


def test_output_error_is_the_trace() -> None:
    weight, h = layer(30, 50)
    blocks = quantize(weight, BlockFormat(4, 16))
    found = output_error(weight, blocks, h)
    assert found.squared_error == pytest.approx(loss(weight, blocks, h).sum(), rel=1e-4)
    exact = weight.astype(np.float64)
    norm = np.trace(exact @ h @ exact.T)
    assert found.squared_norm == pytest.approx(norm, rel=1e-4)
    assert found.relative == pytest.approx(np.sqrt(found.squared_error / norm), rel=1e-4)
    parts = output_error(weight[:11], blocks.rows(0, 11), h) + output_error(
        weight[11:], blocks.rows(11, 30), h
    )
    assert parts.squared_error == pytest.approx(found.squared_error, rel=1e-5)
    with pytest.raises(ValueError, match=r"Hessian \(49, 49\) differ"):
        output_error(weight, blocks, h[:49, :49])


def test_the_worst_blocks_are_those_with_the_largest_own_error() -> None:
    """A block that was spoilt comes first; shares of all blocks add up to 1."""
    weight, h = layer(30, 50)
    blocks = quantize(weight, BlockFormat(4, 16))
    blocks.scales[7, 2] *= 3
    error = weight.astype(np.float64) - dequantize(blocks)
    own = np.zeros((30, 4))
    for block in range(4):
        part = slice(16 * block, 16 * (block + 1))
        own[:, block] = np.einsum("nk,kl,nl->n", error[:, part], h[part, part], error[:, part])
    found = worst_blocks(weight, blocks, h, 5)
    assert (found[0].row, found[0].block) == (7, 2)
    assert [one.share for one in found] == pytest.approx(
        np.sort(own, axis=None)[::-1][:5] / own.sum(), rel=1e-3
    )
    every = worst_blocks(weight, blocks, h, 1000)
    assert sum(one.share for one in every) == pytest.approx(1)
    exact = np.zeros((4, 32), np.float32)
    assert worst_blocks(exact, quantize(exact, BlockFormat(4, 16)), h[:32, :32]) == ()


def test_messages() -> None:
    weight, h = layer(4, 32)
    form = BlockFormat(4, 16)
    with pytest.raises(ValueError, match="Hessian of 32 channels, the weight has 31"):
        gptq(weight[:, :31], factor(h), form)
    with pytest.raises(ValueError, match="grid is float32"):
        gptq(weight, factor(h), form, scales_dtype=np.float16, grid=quantize(weight, form))
    with pytest.raises(TypeError, match="weight is float64"):
        gptq(weight.astype(np.float64), factor(h), form)
    with pytest.raises(ValueError, match="do not fit blocks"):
        descend(weight[:3], quantize(weight, form), h)
