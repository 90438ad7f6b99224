"""Coordinate descent: improve a quantized matrix one column, or one block's scale, at a time.

GPTQ decides each code once, before it knows what later columns will do. Afterwards two steps
lower the same loss trace(E @ H @ E.T) further and never raise it:

    codes   for each column j, all others fixed, the best weight is
            w[j] + sum(e[i] * H[i, j] for i != j) / H[j, j]; it is rounded to its grid
    scales  for fixed codes, the best scales of a row solve A @ s = b, with c = codes - zero
            points, A[g, h] = c[g] @ H[g, h] @ c[h] and b[g] = c[g] @ (H @ w)[g] over blocks g, h;
            they are rounded as they will be stored

H is the damped Hessian throughout: damping keeps the answer near the weights where the inputs
say little. (Coordinate descent on codes: Behdin et al., "QuantEase", 2023.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import Blocks, pack, unpack

__all__ = ["descend"]

# Columns whose changes are passed on one by one before a matrix product takes them together.
PANEL = 64

# Bytes of each of the float32 arrays that a pass over some rows works on.
ROWS_BYTES = 32 << 20

# Share of a scale's own diagonal that ties it to the scale it had: blocks of like inputs would
# trade their scales against each other without end.
TIE = 0.01

Floats = npt.NDArray[np.float32]


def descend(
    weight: npt.NDArray[Any],
    blocks: Blocks,
    hessian: npt.NDArray[Any],
    *,
    damping: float = 0.01,
    sweeps: int = 2,
    scales: bool = True,
) -> Blocks:
    """Lower the output error of blocks; every row ends at most where it was.

    Each sweep refits the scales (unless `scales` is False) and then goes over all columns.
    Time: a sweep is 2 * N * K**2 floating-point operations for the codes and as many for the
    scales, in float32 matrix products.

    Args:
        weight: float [N, K], what the blocks should be like.
        blocks: where to start, such as `gptq`'s.
        hessian: float32 or float64 [K, K], as given to `quant.factor`.
        damping: share of the mean diagonal added; `Factor.damping` says what `factor` used.
        sweeps: how often.
        scales: whether scales may change.

    Returns:
        New blocks of the same format; zero points are those of `blocks`.

    Raises:
        ValueError: when shapes differ.
    """
    n, k = blocks.n, blocks.k
    if weight.shape != (n, k) or hessian.shape != (k, k):
        raise ValueError(
            f"descend: weight {weight.shape} and Hessian {hessian.shape} do not fit "
            f"blocks {(n, k)}."
        )
    h = hessian.astype(np.float32)
    diagonal = h.diagonal().copy()
    live = diagonal[diagonal > 0]
    mean = live.mean() if len(live) else np.float32(1)
    diagonal[diagonal == 0] = mean
    np.fill_diagonal(h, diagonal + np.float32(damping) * mean)
    packed, stored = blocks.packed.copy(), blocks.scales.copy()
    step = max(1, ROWS_BYTES // (4 * k))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        part = _Rows(weight[rows], blocks.rows(rows.start, rows.stop), h)
        for _ in range(sweeps):
            if scales:
                part.refit()
            part.sweep()
        packed[rows], stored[rows] = part.result()
    return Blocks(packed, stored, blocks.zero_points, blocks.format, k)


class _Rows:
    """Some rows of the matrix, columns first: every array [K or blocks, n]."""

    def __init__(self, weight: npt.NDArray[Any], blocks: Blocks, h: Floats) -> None:
        self.blocks, self.h, self.k = blocks, h, blocks.k
        self.block, count, form = blocks.format.block, blocks.scales.shape[1], blocks.format
        self.w = np.ascontiguousarray(weight.T).astype(np.float32, copy=False)
        codes = unpack(blocks.packed, form.bits, form.block).reshape(blocks.n, -1)
        if blocks.zero_points is None:
            self.zero = np.full((count, blocks.n), form.middle, np.float32)
        else:
            zeros = unpack(blocks.zero_points, form.bits, count)
            self.zero = np.ascontiguousarray(zeros.T).astype(np.float32)
        self.c = np.ascontiguousarray(codes[:, : self.k].T).astype(np.float32)
        self.c -= self.spread(self.zero)
        self.scale = np.ascontiguousarray(blocks.scales.T).astype(np.float32)
        self.loss = self.losses(self.scale)

    def spread(self, values: Floats) -> Floats:
        """A number for each block as one for each column."""
        return np.repeat(values, self.block, axis=0)[: self.k]

    def losses(self, scale: Floats) -> npt.NDArray[np.float64]:
        """e @ H @ e of each row, with these scales."""
        error = self.w - self.c * self.spread(scale)
        loss: npt.NDArray[np.float64] = np.einsum(
            "kn,kn->n", error, self.h @ error, dtype=np.float64
        )
        return loss

    def sweep(self) -> None:
        """Every column once, in the order of the columns."""
        h, top = self.h, np.float32(self.blocks.format.max_code)
        error = self.w - self.c * self.spread(self.scale)
        reciprocal = np.divide(
            np.float32(1), self.scale, out=np.zeros_like(self.scale), where=self.scale != 0
        )
        before = self.c.copy()
        for start in range(0, self.k, PANEL):
            stop = min(start + PANEL, self.k)
            slope = h[start:stop] @ error
            moved = np.empty_like(slope)
            for j in range(start, stop):
                i, block = j - start, j // self.block
                if i:
                    slope[i] += h[j, start:j] @ moved[:i]
                # w + (slope - e * h) / h, with w - e the present value.
                code = slope[i] / h[j, j]
                code += self.c[j] * self.scale[block]
                code *= reciprocal[block]
                code += self.zero[block]
                np.rint(code, out=code)
                np.clip(code, 0, top, out=code)
                code -= self.zero[block]
                np.multiply(self.c[j] - code, self.scale[block], out=moved[i])
                self.c[j] = code
            error[start:stop] += moved
        loss = self.losses(self.scale)
        worse = ~(loss <= self.loss)
        self.c[:, worse] = before[:, worse]
        self.loss = np.where(worse, self.loss, loss)

    def refit(self) -> None:
        """The best scales of every row for its codes."""
        count, n = self.scale.shape
        edges = np.arange(0, self.k, self.block)
        hw = self.h @ self.w
        right = np.add.reduceat(self.c * hw, edges, axis=0).T.astype(np.float64)
        left = np.empty((n, count, count))
        for g, first in enumerate(edges):
            inside = slice(first, min(first + self.block, self.k))
            hc = self.h[:, inside] @ self.c[inside]
            hc *= self.c
            left[:, g] = np.add.reduceat(hc, edges, axis=0).T
        own = np.einsum("ngg->ng", left)
        # A block whose codes all equal its zero point says nothing about its scale.
        tie = TIE * own + np.where(own > 0, 0, 1)
        right += tie * self.scale.T
        own += tie  # a view: the diagonal of `left`
        found = np.linalg.solve(left, right[..., None])[..., 0].T
        with np.errstate(over="ignore"):
            found = found.astype(self.blocks.scales.dtype).astype(np.float32)
        usable = np.isfinite(found) & (np.abs(found) >= np.finfo(np.float32).tiny)
        found = np.where(usable & (self.scale != 0), found, self.scale)
        loss = self.losses(found)
        better = loss < self.loss
        self.scale[:, better] = found[:, better]
        self.loss[better] = loss[better]

    def result(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """Packed codes and scales."""
        form, (count, n) = self.blocks.format, self.scale.shape
        codes = np.empty((count * form.block, n), np.uint8)
        codes[: self.k] = self.c + self.spread(self.zero)
        codes[self.k :] = self.zero[-1].astype(np.uint8)
        shaped = np.ascontiguousarray(codes.T).reshape(n, count, form.block)
        return pack(shaped, form.bits), self.scale.T.astype(self.blocks.scales.dtype)
