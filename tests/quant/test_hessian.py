"""Sums of outer products, and the damped factorization."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import quant.hessian
from quant import Hessian, factor
from quant.hessian import Factor


def inputs(t: int, k: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs with channels of very different size."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((t, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    return (mixed * 10.0 ** rng.uniform(-1.5, 1.5, k)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_matrix_is_the_mean_of_outer_products(
    dtype: type, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.hessian, "ROWS", 13)
    monkeypatch.setattr(quant.hessian, "COLUMNS", 32)
    x = inputs(90, k)
    exact = x.astype(np.float64).T @ x / 90
    hessian = Hessian(k, dtype)
    hessian.add(x[:60].reshape(3, 20, k))
    hessian.add(x[60])
    other = Hessian(k, dtype)
    other.add(x[61:])
    hessian.merge(other)
    found = hessian.matrix()
    assert hessian.count == 90 and found.dtype == np.float32
    assert np.array_equal(found, found.T)
    size = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert (np.abs(found - exact) / size).max() < (1e-6 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_inputs_count_as_their_float32_values(dtype: type) -> None:
    x = (np.random.default_rng(1).standard_normal((40, 9)) * 100).astype(dtype)
    narrow, wide = Hessian(9), Hessian(9)
    narrow.add(x)
    wide.add(x.astype(np.float32))
    assert np.array_equal(narrow.matrix(), wide.matrix())


def test_bad_inputs_are_refused_and_change_nothing() -> None:
    hessian = Hessian(4)
    for bad, message in (
        (np.ones((3, 5)), r"inputs have shape \(3, 5\), must be \[..., 4\]"),
        (np.full((3, 4), np.nan), "hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            hessian.add(bad)
    assert hessian.count == 0 and not hessian.total.any()
    with pytest.raises(ValueError, match="no inputs were added"):
        hessian.matrix()
    with pytest.raises(ValueError, match="5 channels cannot be merged into 4"):
        hessian.merge(Hessian(5))
    with pytest.raises(ValueError, match="dtype is int8"):
        Hessian(4, np.int8)


def rebuilt(found: Factor) -> np.ndarray:
    """The damped Hessian in the order of the columns."""
    back = np.argsort(found.order)
    upper = found.upper.astype(np.float64)
    return (upper @ upper.T)[back][:, back]


@pytest.mark.parametrize("k", [1, 5, 16, 100, 131])
@pytest.mark.parametrize("panel", [16, 128])
def test_the_factor_gives_the_damped_matrix_back(
    k: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.hessian, "PANEL", panel)
    x = inputs(3 * k, k)
    h = x.T @ x / (3 * k)
    for order in (None, np.arange(k), np.random.default_rng(0).permutation(k)):
        found = factor(h, damping=0.05, order=order)
        expected = h + 0.05 * h.diagonal().mean() * np.eye(k)
        size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
        assert (np.abs(rebuilt(found) - expected) / size).max() < 1e-5
        assert np.allclose(found.diagonal, expected.diagonal(), rtol=1e-6)
        assert not np.tril(found.upper, -1).any() and (found.upper.diagonal() > 0).all()
        assert (found.damping, found.escalations, found.dead) == (0.05, 0, 0)
        if order is None:
            assert (np.diff(h.diagonal()[found.order]) <= 0).all()


def test_damping_escalates_and_says_so() -> None:
    h = np.eye(8, dtype=np.float32)
    h[0, 1] = h[1, 0] = 1.5  # not positive definite: needs more than 0.5
    found = factor(h, damping=0.01)
    assert found.damping == pytest.approx(1.0) and found.escalations == 2
    assert np.allclose(rebuilt(found), h + np.eye(8), atol=1e-5)
    assert factor(h, damping=0).escalations == 5  # 1e-4, 1e-3, 0.01, 0.1, 1
    h[0, 1] = h[1, 0] = 1e9
    with pytest.raises(ValueError, match="not positive definite even with 1000 of its mean"):
        factor(h)


def test_fewer_inputs_than_channels_need_damping_only() -> None:
    x = inputs(10, 60)
    assert factor(x.T @ x / 10, damping=0.01).escalations == 0


def test_dead_columns_are_decoupled() -> None:
    x = inputs(50, 12)
    x[:, [3, 7]] = 0
    h = x.T @ x / 50
    found = factor(h, damping=0.01)
    live = h.diagonal()[h.diagonal() > 0].mean()
    assert found.dead == 2
    again = rebuilt(found)
    assert again[3, 3] == pytest.approx(1.01 * live, rel=1e-5)
    assert not np.delete(again[3], 3).any()
    nothing = factor(np.zeros((5, 5), np.float32))
    assert nothing.dead == 5 and np.allclose(rebuilt(nothing), 1.01 * np.eye(5))


def test_messages_of_factor() -> None:
    for bad, message in (
        (np.ones((3, 4)), r"Hessian has shape \(3, 4\), must be \[K, K\]"),
        (np.full((3, 3), np.nan), "NaN, infinity or a negative diagonal"),
        (np.diag([1.0, -1.0]), "NaN, infinity or a negative diagonal"),
    ):
        with pytest.raises(ValueError, match=message):
            factor(bad)
    with pytest.raises(ValueError, match=r"permutation of 0\.\.2"):
        factor(np.eye(3), order=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="damping is -1"):
        factor(np.eye(3), damping=-1)
