"""The Hessian of a linear layer's output error: what its inputs say about its weights.

For inputs x [T, K] and a weight error E [N, K] the mean squared output error is

    mean over T of sum(|x @ E.T|**2)  =  trace(E @ H @ E.T)      H = x.T @ x / T   [K, K]

`Hessian` gathers H from pieces of x and forgets them. `factor` prepares H for `quant.gptq`.

Few inputs say little about how channels go together: a row of a large model has 10,000 channels,
and so 50 million pairs of them. Codes that make up for each other by chance correlations are worse
than rounding on other inputs. `Hessian.estimate` therefore moves H towards its diagonal by the
share of the pairs' squares that is chance:

    H' = (1 - s) * H + s * diag(H)        s = Var / sum(c[i, j]**2 for i != j)

with c the correlations and Var the variance of their mean, summed over the same pairs. That is the
linear shrinkage of Ledoit and Wolf (2004) towards the diagonal, in correlations as Schaefer and
Strimmer (2005) have it. Neighbouring tokens are alike, so the variance is that between runs of
`RUN` rows, not between rows.
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

# Rows of x that count as one independent look at the correlations.
RUN = 256

# Share of the mean square below which a channel's scale counts as that.
FLOOR = 1e-3


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

    def __init__(self, k: int, dtype: npt.DTypeLike = np.float64, run: int = RUN) -> None:
        """Start at zero.

        Args:
            k: K, input channels.
            dtype: float64, or float32 for half the memory.
            run: rows that count as one independent look; 1 where rows have nothing to do with
                their neighbours.

        Raises:
            ValueError: for another dtype, or a run of no rows.
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"Hessian: dtype is {np.dtype(dtype)}, must be float32 or float64.")
        if run < 1:
            raise ValueError(f"Hessian: run is {run}, must be 1 or more.")
        self.total: npt.NDArray[Any] = np.zeros((k, k), dtype)
        self.count = 0
        self._run = run
        self._scale: npt.NDArray[np.float64] | None = None
        self._squares = 0.0  # of the sums over each run, off the diagonal, in correlations
        self._sizes = 0  # squares of the runs' numbers of rows

    @property
    def k(self) -> int:
        """K, input channels."""
        return len(self.total)

    def add(self, x: npt.NDArray[Any]) -> None:
        """Add inputs.

        Args:
            x: float [..., K], any dtype that converts to float32; neighbouring rows may be alike,
                those of two calls are taken to be independent.

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
        for start in range(0, len(rows), self._run):
            self._look(rows[start : start + self._run].astype(np.float64))
        self.count += len(rows)

    def _look(self, run: npt.NDArray[np.float64]) -> None:
        """Add the squares of what one run says about each pair of channels.

        The sum over i and j of (sum over t of x[t, i] * x[t, j])**2 is that over t and u of
        (sum over i of x[t, i] * x[u, i])**2, which needs no [K, K].
        """
        square = np.einsum("tk,tk->k", run, run)
        if self._scale is None:
            # Any fixed scale is fair to both sides of the share; this one makes channels equal.
            mean = square / len(run)
            self._scale = 1 / np.sqrt(mean + FLOOR * mean.mean() + np.finfo(np.float32).tiny)
        scaled = run * self._scale
        together = scaled @ scaled.T
        alone = square * self._scale**2
        self._squares += float(np.einsum("tu,tu->", together, together) - alone @ alone)
        self._sizes += len(run) ** 2

    @property
    def shrinkage(self) -> float:
        """The share of the correlations that is chance, from 0 to 1; 1 from a single run."""
        scale = self._scale
        if scale is None or self._sizes >= self.count**2:
            return 1.0
        whole = 0.0
        for first in range(0, self.k, COLUMNS):
            rows = self.total[first : first + COLUMNS, first:].astype(np.float64)
            rows *= scale[first : first + COLUMNS, None] * scale[first:]
            whole += 2 * float(np.square(np.triu(rows, 1)).sum())
        # With sums S over the runs of n rows: E|S|**2 = n**2 * |H|**2 + Var(S), and the total's
        # own square holds the variance of all runs.
        share = self._sizes / self.count**2
        variance = (self._squares - share * whole) / (1 - share)
        return float(np.clip(variance / whole, 0, 1)) if whole > 0 else 1.0

    def matrix(self) -> npt.NDArray[np.float32]:
        """H = x.T @ x / T, float32 [K, K], symmetric: the error on these very inputs.

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

    def estimate(self) -> npt.NDArray[np.float32]:
        """H as other inputs of the same kind will have it, float32 [K, K]: shrunk as above.

        Raises:
            ValueError: when nothing was added.
        """
        found = self.matrix()
        diagonal = found.diagonal().copy()
        found *= np.float32(1 - self.shrinkage)
        np.fill_diagonal(found, diagonal)
        return found


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
    whose first half becomes the float32 result, and a panel; 8 bytes for each of K*K at the peak.

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
    upper = _narrowed(work)
    damped = (diagonal + damping * mean).astype(np.float32)
    return Factor(order, upper, damped, damping, escalations, int(dead.sum()))


def _narrowed(work: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A matrix in float32, in the first half of its own memory; the other half is given back.

    Args:
        work: [K, K], contiguous, the only reference to its memory; it is used up.
    """
    k = len(work)
    narrow = work.reshape(-1).view(np.float32)
    for row in range(k):  # written no further than has been read
        narrow[row * k : (row + 1) * k] = work[row].astype(np.float32)
    del narrow
    work.resize((k * k + 1) // 2, refcheck=False)
    return work.view(np.float32)[: k * k].reshape(k, k)


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
