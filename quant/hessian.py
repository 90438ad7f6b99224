"""The Hessian of a linear layer's output error: what its inputs say about its weights.

For inputs x [T, K] and a weight error E [N, K] the mean squared output error is

    mean over T of sum(|x @ E.T|**2)  =  trace(E @ H @ E.T)      H = x.T @ x / T   [K, K]

`Hessian` gathers H from pieces of x and forgets them. `factor` prepares H for `quant.gptq`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Factor", "Hessian", "factor"]

# Rows of x that one float32 product sums, and columns of H updated at a time.
ROWS, COLUMNS = 2048, 512

# Columns that the Cholesky factorization works on at a time.
PANEL = 128

# Damping beyond which `factor` gives up: the matrix is no covariance then.
MOST_DAMPING = 1e3


class Hessian:
    """A running sum of x.T @ x.

    Products are float32 over at most `ROWS` rows at a time, so a sum over many tokens is
    accurate to about 1e-6 of `sqrt(H[i, i] * H[j, j])` in float64, and still to about 1e-5 in
    float32, far less than the damping that follows.

    Memory: K*K numbers, and a piece of `COLUMNS` columns while adding. Only the part above the
    diagonal is kept up to date.

    Attributes:
        total: [K, K], the upper triangle of the sum.
        count: rows summed.
    """

    def __init__(self, k: int, dtype: npt.DTypeLike = np.float64) -> None:
        """Start at zero.

        Args:
            k: K, input channels.
            dtype: float64, or float32 for half the memory.

        Raises:
            ValueError: for another dtype.
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"Hessian: dtype is {np.dtype(dtype)}, must be float32 or float64.")
        self.total: npt.NDArray[Any] = np.zeros((k, k), dtype)
        self.count = 0

    @property
    def k(self) -> int:
        """K, input channels."""
        return len(self.total)

    def add(self, x: npt.NDArray[Any]) -> None:
        """Add inputs.

        Args:
            x: float [..., K], any dtype that converts to float32.

        Raises:
            ValueError: for another number of channels, or NaN or infinity; nothing is added then.
        """
        if x.ndim < 1 or x.shape[-1] != self.k:
            raise ValueError(f"Hessian: inputs have shape {x.shape}, must be [..., {self.k}].")
        rows = x.reshape(-1, self.k)
        if not np.isfinite(rows).all():
            raise ValueError("Hessian: inputs hold NaN or infinity.")
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS].astype(np.float32, copy=False)
            for first in range(0, self.k, COLUMNS):
                panel = part[:, first : first + COLUMNS]
                self.total[first : first + COLUMNS, first:] += panel.T @ part[:, first:]
        self.count += len(rows)

    def merge(self, other: Hessian) -> None:
        """Add what another one has summed.

        Raises:
            ValueError: when it has another number of channels.
        """
        if other.k != self.k:
            raise ValueError(f"Hessian: {other.k} channels cannot be merged into {self.k}.")
        self.total += other.total
        self.count += other.count

    def matrix(self) -> npt.NDArray[np.float32]:
        """H = x.T @ x / T, float32 [K, K], symmetric.

        Raises:
            ValueError: when nothing was added.
        """
        if self.count == 0:
            raise ValueError("Hessian: no inputs were added.")
        out = np.empty((self.k, self.k), np.float32)
        for first in range(0, self.k, COLUMNS):
            rows = self.total[first : first + COLUMNS, first:] / self.count
            out[first:, first : first + COLUMNS] = rows.T
            # Of the corner on the diagonal, the upper half counts for both.
            corner = np.triu(rows[:, : len(rows)])
            out[first : first + COLUMNS, first:] = rows
            out[first : first + COLUMNS, first : first + COLUMNS] = corner + np.triu(corner, 1).T
        return out


@dataclass(frozen=True, eq=False)
class Factor:
    """A damped Hessian, factored in the order in which columns are to be quantized.

    Attributes:
        order: int64 [K], a permutation: `order[i]` is the column quantized i-th.
        upper: float32 [K, K], upper triangular, `upper @ upper.T` the damped Hessian in that
            order.
        diagonal: float32 [K], the damped diagonal in the order of the columns.
        damping: the share of the mean diagonal that was added.
        escalations: how often damping was raised tenfold because the factorization failed.
        dead: columns whose input was always 0.
    """

    order: npt.NDArray[np.int64]
    upper: npt.NDArray[np.float32]
    diagonal: npt.NDArray[np.float32]
    damping: float
    escalations: int
    dead: int

    @property
    def k(self) -> int:
        """K, input channels."""
        return len(self.order)


def factor(
    hessian: npt.NDArray[Any],
    *,
    damping: float = 0.01,
    order: npt.NDArray[Any] | None = None,
) -> Factor:
    """Damp a Hessian and factor it as `upper @ upper.T`.

    `damping` times the mean of the live diagonal is added to the diagonal. If the factorization
    still meets a pivot that is not positive, damping is raised tenfold, from 1e-4 where it was
    less, until it succeeds; the result says so. A dead column, one with 0 on the diagonal, gets
    the mean diagonal: nothing is coupled with it, so it is rounded to nearest. If every column is
    dead, the Hessian counts as the identity.

    Time K**3 / 3 multiplications in float64. Memory: the float64 copy that is factored in place,
    the float32 result, and a panel; 12 bytes for each of K*K at the peak.

    Args:
        hessian: float32 or float64 [K, K], symmetric.
        damping: share of the mean diagonal, not negative.
        order: the columns in order of processing; by falling diagonal when None.

    Raises:
        ValueError: when the Hessian is not square, holds NaN, infinity or a negative diagonal,
            the order is no permutation, or no damping up to 1000 makes it positive definite.
    """
    k = len(hessian)
    if hessian.shape != (k, k) or k == 0:
        raise ValueError(f"factor: Hessian has shape {hessian.shape}, must be [K, K] with K > 0.")
    if not damping >= 0:
        raise ValueError(f"factor: damping is {damping}, must not be negative.")
    diagonal = hessian.diagonal().astype(np.float64)
    # A sum over all is NaN or infinite where an element is, without a mask of K*K.
    if not np.isfinite(hessian.sum(dtype=np.float64)) or (diagonal < 0).any():
        raise ValueError("factor: Hessian holds NaN, infinity or a negative diagonal.")
    dead = diagonal == 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    diagonal[dead] = mean
    if order is None:
        order = np.argsort(-diagonal, kind="stable")
    order = np.asarray(order, np.int64)
    if order.shape != (k,) or not np.array_equal(np.sort(order), np.arange(k)):
        raise ValueError(f"factor: order must be a permutation of 0..{k - 1}.")

    escalations = 0
    while True:
        work = np.empty((k, k))
        for start in range(0, k, PANEL):
            rows = order[start : start + PANEL]
            work[start : start + PANEL] = hessian[rows][:, order]
        np.fill_diagonal(work, diagonal[order] + damping * mean)
        try:
            _factor_in_place(work)
            break
        except np.linalg.LinAlgError:
            damping = max(damping * 10, 1e-4)
            escalations += 1
            if damping > MOST_DAMPING:
                raise ValueError(
                    f"factor: Hessian is not positive definite even with {damping / 10:g} of its "
                    "mean diagonal added; it is no covariance."
                ) from None
    upper = work.astype(np.float32)
    damped = (diagonal + damping * mean).astype(np.float32)
    return Factor(order, upper, damped, damping, escalations, int(dead.sum()))


def _factor_in_place(work: npt.NDArray[np.float64]) -> None:
    """Replace a symmetric positive definite matrix by its upper factor R, `R @ R.T`.

    It is the Cholesky factorization from the last column to the first, in panels: most of the
    work is matrix products, and the memory is that of the matrix and one panel.

    Raises:
        numpy.linalg.LinAlgError: when the matrix is not positive definite.
    """
    for stop in range(len(work), 0, -PANEL):
        start = max(0, stop - PANEL)
        # Reversing rows and columns turns the lower factor of NumPy into the upper one. NumPy
        # reads the lower half of what it is given, which is the upper half of `work`.
        corner = np.linalg.cholesky(work[start:stop, start:stop][::-1, ::-1])[::-1, ::-1]
        work[start:stop, start:stop] = corner
        work[start:stop, :start] = 0
        panel = np.linalg.solve(corner, work[:start, start:stop].T).T
        work[:start, start:stop] = panel
        for row in range(0, start, 1024):  # above the diagonal only
            rows = slice(row, min(row + 1024, start))
            work[rows, row:start] -= panel[rows] @ panel[row:].T
