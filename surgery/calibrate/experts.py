"""Experts of a mixture: each has a Hessian of its own, from the tokens that its router sends it.

With k of E experts active, an expert sees one token in E / k. What so few say about correlations
is mostly chance, which `quant.Hessian.estimate` leaves out; an expert that a single run of tokens
reaches, or none, is left with mean squares: its scales are searched under those (`quant.search`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import quant
from surgery.match.mixtures import Mixture

RUN = 16
"""Tokens of an expert that count as one look: they come from one text, but are no neighbours."""
STAND_IN = 256
"""Tokens of the others that tell the mean squares of an expert that no token reaches."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stack:
    """A stack of matrices [E, N, K] in blocks.

    Attributes:
        name: of the weight.
        shape: E, N and K.
        blocks: of all E * N rows.
        own: matrices that tokens of their own decided.
        error: mean squared error of the products' outputs, summed over experts.
        norm: mean squared length of those outputs.
    """

    name: str
    shape: tuple[int, int, int]
    blocks: quant.Blocks
    own: int
    error: float
    norm: float


def scores(logits: npt.NDArray[Any], active: int) -> Floats:
    """What each token gives each expert, [T, E]: a softmax over its largest logits, 0 elsewhere."""
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    chosen = np.argpartition(-rows, active - 1, axis=-1)[:, :active]
    best = np.take_along_axis(rows, chosen, -1)
    shares = np.exp(best - best.max(-1, keepdims=True))
    found = np.zeros(rows.shape, np.float32)
    np.put_along_axis(found, chosen, shares / shares.sum(-1, keepdims=True), -1)
    return found


def quantized(
    mixture: Mixture,
    x: npt.NDArray[Any],
    logits: npt.NDArray[Any],
    format: quant.BlockFormat,
    scales_dtype: npt.DTypeLike = np.float32,
) -> tuple[Stack, Stack]:
    """Quantize both weights of all experts.

    Inputs count by the square of the score with which the expert's output enters the sum.

    Args:
        mixture: float weights.
        x: [..., H], inputs of the experts.
        logits: [..., E], of the router.
        format: of both weights; its blocks divide H and I.
        scales_dtype: of the scales.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32, copy=False)
    given = scores(logits, mixture.active)
    parts: tuple[list[Fitted], list[Fitted]] = [], []
    spread = np.linspace(0, len(rows) - 1, min(STAND_IN, len(rows))).astype(int)
    for expert in range(given.shape[1]):
        upward, downward = (
            np.ascontiguousarray(source.read(expert, expert + 1)[0][0], np.float32)
            for source in (mixture.upward, mixture.downward)
        )
        reached = np.flatnonzero(given[:, expert])
        own = len(reached) > 0
        inputs = rows[reached] if own else rows[spread]
        weights = given[reached, expert][:, None] if own else np.float32(1)
        parts[0].append(fit(upward, inputs * weights, own, format, scales_dtype))
        hidden = gated(inputs @ upward.T) * weights
        parts[1].append(fit(downward, hidden, own, format, scales_dtype))
    first, second = (
        stacked(name, fitted, len(rows)) for name, fitted in zip(mixture.names, parts, strict=True)
    )
    return first, second


@dataclass(frozen=True)
class Fitted:
    """A matrix in blocks, with sums of squares over the tokens that it was fitted to."""

    blocks: quant.Blocks
    own: bool
    error: float
    norm: float


def fit(
    weight: Floats,
    inputs: Floats,
    own: bool,
    format: quant.BlockFormat,
    scales_dtype: npt.DTypeLike,
) -> Fitted:
    """Quantize a matrix [N, K] for inputs [T, K]; those that are not its own count by size only."""
    total = quant.Hessian(weight.shape[1], np.float32, run=RUN)
    total.add(inputs)
    own = own and total.shrinkage < 1
    hessian = total.estimate()
    if own:
        factor = quant.factor(hessian)
        blocks = quant.gptq(weight, factor, format, scales_dtype=scales_dtype)
        blocks = quant.descend(weight, blocks, hessian, damping=factor.damping)
    else:
        squares = hessian.diagonal().copy()
        blocks = quant.search(weight, format, squares, scales_dtype=scales_dtype)
    error = quant.output_error(weight, blocks, hessian).squared_error * len(inputs)
    norm = np.einsum("nk,nk->", weight @ hessian, weight, dtype=np.float64) * len(inputs)
    return Fitted(blocks, own, float(error), float(norm))


def gated(product: Floats) -> Floats:
    """silu(gate) * up of rows in which gates and ups alternate, [T, 2 * I] to [T, I]."""
    gate, up = product[:, 0::2], product[:, 1::2]
    with np.errstate(over="ignore"):
        return np.asarray(gate / (1 + np.exp(-gate)) * up, np.float32)


def stacked(name: str, fitted: list[Fitted], tokens: int) -> Stack:
    """The matrices of all experts as one."""
    first = fitted[0].blocks

    def joined(parts: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(list(parts))

    blocks = quant.Blocks(
        joined(one.blocks.packed for one in fitted),
        joined(one.blocks.scales for one in fitted),
        None
        if first.zero_points is None
        else joined(one.blocks.zero_points for one in fitted if one.blocks.zero_points is not None),
        first.format,
        first.k,
    )
    return Stack(
        name,
        (len(fitted), first.n, first.k),
        blocks,
        sum(one.own for one in fitted),
        sum(one.error for one in fitted) / tokens,
        sum(one.norm for one in fitted) / tokens,
    )
