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
    hessian.add(x[61:])
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
    with pytest.raises(ValueError, match="dtype is int8"):
        Hessian(4, np.int8)
    with pytest.raises(ValueError, match="run is 0, must be 1 or more"):
        Hessian(4, run=0)


@pytest.mark.parametrize("runs", [2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_share_of_chance_is_the_variance_of_the_mean(
    runs: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its definition, from the products of every run, whatever panels they are summed in."""
    monkeypatch.setattr(quant.hessian, "COLUMNS", 8)
    k, size = 20, 16
    x = inputs(runs * size, k, seed=3)
    hessian = Hessian(k, dtype, run=size)
    hessian.add(x)
    mean = np.square(x[:size].astype(np.float64)).mean(0)
    scale = 1 / np.sqrt(mean + quant.hessian.FLOOR * mean.mean())
    each = [(part * scale).T @ (part * scale) for part in np.split(x.astype(np.float64), runs)]
    off = ~np.eye(k, dtype=bool)
    whole = sum(each)
    variance = sum(np.square(s - whole / runs)[off].sum() for s in each) * runs / (runs - 1)
    wanted = min(variance / np.square(whole)[off].sum(), 1)
    assert 0 < wanted < 1
    assert hessian.shrinkage == pytest.approx(wanted, rel=1e-4)


def test_runs_of_different_length_are_weighed() -> None:
    """Short runs neither raise nor lower the share on average."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(40):
        x = inputs(512, 24, seed)
        for even in shares:
            hessian = Hessian(24, run=64)
            for part in np.split(x, 8) if even else np.split(x, [20, 64, 100, 192, 256, 400]):
                hessian.add(part)
            shares[even].append(hessian.shrinkage)
    assert np.mean(shares[True]) == pytest.approx(np.mean(shares[False]), rel=0.3)


def test_what_is_chance_shrinks_and_what_is_not_stays() -> None:
    rng = np.random.default_rng(5)
    independent, one, dependent = (Hessian(50, run=1), Hessian(50), Hessian(50, run=1))
    independent.add(rng.standard_normal((200, 50)))
    one.add(rng.standard_normal((200, 50)))
    common = rng.standard_normal((2000, 1))
    dependent.add(common + 0.1 * rng.standard_normal((2000, 50)))
    assert independent.shrinkage > 0.8 and one.shrinkage == 1 and dependent.shrinkage < 0.01
    assert Hessian(3).shrinkage == 1
    for hessian in (independent, one, dependent):
        s, plain = hessian.shrinkage, hessian.matrix()
        wanted = (1 - s) * plain + s * np.diag(plain.diagonal())
        np.testing.assert_allclose(hessian.estimate(), wanted, rtol=1e-5, atol=1e-7)


def test_a_channel_that_starts_dead_does_not_count_alone() -> None:
    x = inputs(400, 12, seed=2)
    x[:100, 3] = 0
    hessian = Hessian(12, run=100)
    hessian.add(x)
    assert 0 < hessian.shrinkage < 1
    nothing = Hessian(4, run=2)
    nothing.add(np.zeros((8, 4)))
    assert nothing.shrinkage == 1 and not nothing.estimate().any()


def test_few_inputs_mislead_the_matrix_and_not_the_estimate() -> None:
    """On inputs that neither has seen, codes chosen under the matrix are worse than rounding."""
    rng = np.random.default_rng(7)
    k, form = 256, quant.BlockFormat(4, 32, symmetric=False)
    mixing = np.eye(k) + 0.4 * rng.standard_normal((k, k)) / np.sqrt(k)
    weight = rng.standard_normal((64, k)).astype(np.float32)
    x = (rng.standard_normal((20000, k)) @ mixing).astype(np.float32)
    seen, unseen = Hessian(k, run=1), Hessian(k)
    seen.add(x[:300])
    unseen.add(x[300:])
    errors = {
        name: quant.output_error(
            weight, quant.gptq(weight, factor(hessian), form), unseen.matrix()
        ).squared_error
        for name, hessian in (("matrix", seen.matrix()), ("estimate", seen.estimate()))
    }
    rounded = quant.quantize_parallel(weight, form)
    plain = quant.output_error(weight, rounded, unseen.matrix()).squared_error
    assert errors["matrix"] > 1.2 * plain
    assert errors["estimate"] < plain


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
