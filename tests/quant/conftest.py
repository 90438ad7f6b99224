"""What the tests of `quant` share: every format, and rows that meet every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quant import BlockFormat

FORMATS = [
    BlockFormat(bits, block, symmetric)
    for bits in (2, 4, 8)
    for block in (16, 32, 64, 128, 256)
    for symmetric in (True, False)
]


@pytest.fixture(params=FORMATS, ids=str)
def form(request: pytest.FixtureRequest) -> BlockFormat:
    """Each format in turn."""
    chosen: BlockFormat = request.param
    return chosen


@pytest.fixture
def formats() -> list[BlockFormat]:
    """All of them."""
    return FORMATS


@pytest.fixture
def hard_rows() -> Callable[[int, np.random.Generator], Any]:
    """A maker of rows of k weights."""
    return make_hard_rows


def make_hard_rows(k: int, rng: np.random.Generator) -> Any:
    """Rows that meet the rounding and range rules: ties, signs, zeros, extremes."""
    normal = rng.standard_normal((4, k)) * 0.02
    grid = rng.integers(-16, 17, (4, k)) / 2.0  # halves: ties in many scales
    grid[:, ::16] = -8  # symmetric scale 1
    span = rng.integers(0, 31, (2, k)) / 2.0 - 5
    span[:, 0::16], span[:, 1::16] = -5, 10  # asymmetric scale 1, zero point 5
    rows = [
        *normal,
        *grid,
        *-grid,
        *span,
        np.abs(normal[0]),
        -np.abs(normal[1]),
        np.zeros(k),
        np.full(k, 0.37),
        np.full(k, -0.37),
        np.where(np.arange(k) % 2, 1.0, -1.0),
        np.eye(1, k, 3 % k)[0],
        normal[0] * 1e36,
        normal[0] * 1e-36,
        normal[0] * 1e-38,
        normal[0] * 2.0**-140,
    ]
    return np.array(rows, np.float32)
