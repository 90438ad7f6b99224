"""How far a quantized matrix is from its original."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import Blocks, dequantize

__all__ = [
    "BlockError",
    "OutputError",
    "WeightError",
    "output_error",
    "weight_error",
    "worst_blocks",
]

# Weights compared at a time: bounds the memory to a few MB.
_PIECE = 1 << 18


@dataclass(frozen=True)
class WeightError:
    """Error of a matrix, or of rows of it: `a + b` is the error of both together.

    Attributes:
        squared_error: sum of `(w - dequantized)**2`.
        squared_norm: sum of `w**2`.
        max_error: largest `abs(w - dequantized)`.
    """

    squared_error: float = 0.0
    squared_norm: float = 0.0
    max_error: float = 0.0

    def __add__(self, other: WeightError) -> WeightError:
        """The error over the rows of both."""
        return WeightError(
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
            max(self.max_error, other.max_error),
        )

    @property
    def relative(self) -> float:
        """`norm(w - dequantized) / norm(w)`, Frobenius norms; 0 for an exact matrix of zeros."""
        if self.squared_error == 0.0:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else math.inf


def weight_error(weight: npt.NDArray[Any], blocks: Blocks) -> WeightError:
    """Compare a matrix with its blocks, in float64 sums.

    Args:
        weight: float [N, K], any dtype that converts to float32.
        blocks: its quantized form.

    Raises:
        ValueError: when the shapes differ.
    """
    if weight.shape != (blocks.n, blocks.k):
        raise ValueError(
            f"weight_error: weight {weight.shape} and blocks {(blocks.n, blocks.k)} differ."
        )
    total = WeightError()
    step = max(1, _PIECE // blocks.k)
    for start in range(0, blocks.n, step):
        original = weight[start : start + step].astype(np.float32)
        error = original - dequantize(blocks.rows(start, start + step))
        total += WeightError(
            float(np.einsum("nk,nk->", error, error, dtype=np.float64)),
            float(np.einsum("nk,nk->", original, original, dtype=np.float64)),
            float(np.abs(error).max()),
        )
    return total


@dataclass(frozen=True)
class OutputError:
    """Error of a linear layer's output; `a + b` is that of the rows of both.

    Attributes:
        squared_error: trace(E @ H @ E.T), the mean squared length of the output's error.
        squared_norm: trace(W @ H @ W.T), that of the output itself.
    """

    squared_error: float = 0.0
    squared_norm: float = 0.0

    def __add__(self, other: OutputError) -> OutputError:
        """The error over the rows of both."""
        return OutputError(
            self.squared_error + other.squared_error, self.squared_norm + other.squared_norm
        )

    @property
    def relative(self) -> float:
        """Square root of error over norm; 0 for an exact output of zeros."""
        if self.squared_error == 0.0:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else math.inf


def output_error(
    weight: npt.NDArray[Any], blocks: Blocks, hessian: npt.NDArray[Any]
) -> OutputError:
    """Compare what a matrix and its blocks make of the inputs that a Hessian sums up.

    Products are float32, sums over them float64.

    Args:
        weight: float [N, K], any dtype that converts to float32.
        blocks: its quantized form.
        hessian: float32 or float64 [K, K], x.T @ x / T as `Hessian.matrix` gives it.

    Raises:
        ValueError: when shapes differ.
    """
    k = blocks.k
    if weight.shape != (blocks.n, k) or hessian.shape != (k, k):
        raise ValueError(
            f"output_error: weight {weight.shape}, blocks {(blocks.n, k)} and Hessian "
            f"{hessian.shape} differ."
        )
    h = hessian.astype(np.float32, copy=False)
    total = OutputError()
    step = max(1, 16 * _PIECE // k)
    for start in range(0, blocks.n, step):
        original = weight[start : start + step].astype(np.float32)
        error = original - dequantize(blocks.rows(start, start + step))
        # Rounding can leave a vanishing form a little below zero.
        total += OutputError(
            max(0.0, float(np.einsum("nk,nk->", error @ h, error, dtype=np.float64))),
            max(0.0, float(np.einsum("nk,nk->", original @ h, original, dtype=np.float64))),
        )
    return total


@dataclass(frozen=True)
class BlockError:
    """What one block adds to the error of an output.

    Attributes:
        row: of the matrix.
        block: number of the block in its row.
        share: of what all blocks of the matrix add, each by itself: 0 to 1.
    """

    row: int
    block: int
    share: float


def worst_blocks(
    weight: npt.NDArray[Any], blocks: Blocks, hessian: npt.NDArray[Any], count: int = 3
) -> tuple[BlockError, ...]:
    """The blocks whose own errors weigh most in the output, those that weigh most first.

    A block with error e and columns b adds e @ H[b, b] @ e by itself; what errors of two blocks
    compensate, or add up to, between them is left out.

    Args:
        weight: float [N, K], any dtype that converts to float32.
        blocks: its quantized form.
        hessian: as for `output_error`.
        count: how many blocks to name; fewer where fewer have an error.
    """
    h, size = hessian.astype(np.float32, copy=False), blocks.format.block
    added = np.zeros((blocks.n, -(-blocks.k // size)))
    step = max(1, 16 * _PIECE // blocks.k)
    for start in range(0, blocks.n, step):
        original = weight[start : start + step].astype(np.float32)
        error = original - dequantize(blocks.rows(start, start + step))
        for block in range(added.shape[1]):
            columns = slice(block * size, (block + 1) * size)
            part = error[:, columns]
            own = np.einsum("nk,nk->n", part @ h[columns, columns], part, dtype=np.float64)
            added[start : start + step, block] = np.maximum(own, 0)
    total = float(added.sum())
    order = np.argsort(-added, axis=None, kind="stable")[:count]
    places = [divmod(int(place), added.shape[1]) for place in order]
    return tuple(
        BlockError(row, block, float(added[row, block]) / total)
        for row, block in places
        if added[row, block] > 0
    )
