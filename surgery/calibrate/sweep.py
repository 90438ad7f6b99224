"""One pass over the pieces: Hessians of every weight, candidates, and what each would cost.

The loss of a piece is measured: its weights are quantized, and a few short rows of tokens run
from there through the float pieces behind it. The loss is the KL divergence from the float logits,
or of a graph without logits how far its output moves. Inside the piece it is shared out by how much
each weight alone moves the piece's output. Both use forward runs only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import quant
from surgery.calibrate.pieces import Array, Piece
from surgery.rewrite.weights import Source

Floats = npt.NDArray[np.float64]

Batch = Mapping[str, Array]
"""Graph inputs of some rows of tokens, by name."""

DESCENT = 2
"""Sweeps of coordinate descent after GPTQ."""

MASK = "attention_mask"
"""The input `[B, S]` that is 0 where a row is padded."""


@dataclass
class Candidate:
    """A weight in one format.

    Attributes:
        blocks: its codes and scales; None once they were handed on.
        error: mean squared error of the product's output.
        nbytes: bytes of codes, scales and zero points.
        worst: blocks whose own errors weigh most in the output.
    """

    blocks: quant.Blocks | None
    error: float
    nbytes: int
    worst: tuple[quant.BlockError, ...] = ()


@dataclass
class Measured:
    """What is known of one weight.

    Attributes:
        name: of the weight.
        shape: N and K.
        candidates: by format, the base format first.
        norm: mean squared length of the product's output.
        tokens: rows that its Hessian sums up.
        damping: share of the mean diagonal that was added to the Hessian.
        share: its share of the loss of its piece; 0 for experts, which have one format.
        loss: KL divergence that the base format is estimated to cost, in nats a token.
        stack: matrices in the weight, whose rows follow each other; more than 1 for experts.
        own: experts that tokens of their own decided.
    """

    name: str
    shape: tuple[int, int]
    candidates: dict[quant.BlockFormat, Candidate]
    norm: float
    tokens: int
    damping: float
    share: float = 1.0
    loss: float = 0.0
    stack: int = 1
    own: int = 0


@dataclass
class Streams:
    """Activations between two pieces.

    Attributes:
        main: of each batch of the calibration tokens.
        probe: of the probe rows, float weights everywhere.
        changed: of the probe rows, one piece quantized: by the number of that piece.
    """

    main: list[Array] = field(default_factory=list)
    probe: Array | None = None
    changed: dict[int, Array] = field(default_factory=dict)


@dataclass
class Observed:
    """What the calibration tokens are in a piece.

    Attributes:
        leaving: what leaves it, of each batch.
        sums: the Hessian of each input of its products by name.
        routed: inputs and router logits of its mixtures by name, [T, width], of all batches.
    """

    leaving: list[Array] = field(default_factory=list)
    sums: dict[str, quant.Hessian] = field(default_factory=dict)
    routed: dict[str, Array] = field(default_factory=dict)


def tokens_of(batch: Batch, x: Array) -> Array:
    """The rows [T, K] of an activation [B, S, K] or [B * S, K], without those of padded tokens.

    An activation of another shape, such as one row for each example, has no padding.
    """
    mask, rows = batch.get(MASK), x.reshape(-1, x.shape[-1])
    if mask is None or mask.size != len(rows) or x.shape[:-1] not in (mask.shape, (mask.size,)):
        return rows
    return rows if mask.all() else rows[mask.reshape(-1) != 0]


def observe(
    piece: Piece, batches: Sequence[Batch], weights: Mapping[str, Array], main: list[Array]
) -> Observed:
    """Run the calibration tokens through a piece; what is padded runs, and counts for nothing."""
    found = Observed()
    routed: dict[str, list[Array]] = {name: [] for name in piece.routed}
    for i, batch in enumerate(batches):
        feeds = {**batch, **({piece.entering: main[i]} if piece.enters is not None else {})}
        names = tuple(dict.fromkeys((*piece.observed, *piece.routed)))
        out, *inputs = piece.run(feeds, weights, piece.leaving, *names)
        found.leaving.append(out)
        for name, value in zip(names, inputs, strict=True):
            x = tokens_of(batch, value)
            if name in piece.observed:
                if name not in found.sums:
                    found.sums[name] = quant.Hessian(x.shape[-1], np.float32)
                found.sums[name].add(x)
            if name in routed:
                routed[name].append(x)
    found.routed = {name: np.concatenate(parts) for name, parts in routed.items()}
    return found


def candidates(
    weight: npt.NDArray[np.float32],
    hessian: npt.NDArray[np.float32],
    factor: quant.Factor,
    formats: Sequence[quant.BlockFormat],
    scales_dtype: npt.DTypeLike,
) -> dict[quant.BlockFormat, Candidate]:
    """A weight in each format: GPTQ and coordinate descent, 8 bits rounded to nearest."""
    found = {}
    for form in formats:
        if form.bits == 8:
            blocks = quant.quantize_parallel(weight, form, scales_dtype=scales_dtype)
        else:
            blocks = quant.gptq(weight, factor, form, scales_dtype=scales_dtype)
            blocks = quant.descend(weight, blocks, hessian, damping=factor.damping, sweeps=DESCENT)
        error = quant.output_error(weight, blocks, hessian).squared_error
        worst = quant.worst_blocks(weight, blocks, hessian)
        found[form] = Candidate(blocks, error, blocks.nbytes, worst)
    return found


def probe(
    piece: Piece,
    number: int,
    rows: Batch,
    weights: Mapping[str, Array],
    measured: Sequence[Measured],
    streams: Streams,
) -> None:
    """Advance the probe rows through a piece and add a stream in which it alone is quantized.

    The weights' shares of the piece's loss are set.
    """
    feeds = dict(rows)
    if piece.enters is not None:
        assert streams.probe is not None
        feeds[piece.entering] = streams.probe

    def run(changed: Mapping[str, Array], feeds: Batch = feeds) -> Array:
        return piece.run(feeds, {**weights, **changed}, piece.leaving)[0]

    exact = run({})
    base = {}
    for one in measured:
        first = next(iter(one.candidates.values()))
        assert first.blocks is not None
        base[one.name] = quant.dequantize(first.blocks)
    moved = [
        float(np.square(tokens_of(rows, run({one.name: base[one.name]}) - exact)).mean())
        for one in measured
    ]
    for one, move in zip(measured, moved, strict=True):
        one.share = move / sum(moved) if sum(moved) > 0 else 1 / len(moved)
    for other, stream in streams.changed.items():
        streams.changed[other] = run({}, {**rows, piece.entering: stream})
    streams.changed[number] = run(base)
    streams.probe = exact


def distances(streams: Streams, rows: Batch) -> dict[int, float]:
    """Squared length of each changed stream's difference from the float one, over its own.

    The loss of a graph without logits.

    Args:
        streams: after the last piece.
        rows: the probe rows.
    """
    assert streams.probe is not None
    exact = streams.probe
    whole = float(np.square(tokens_of(rows, exact), dtype=np.float64).sum()) or 1.0
    return {
        number: float(np.square(tokens_of(rows, other - exact), dtype=np.float64).sum()) / whole
        for number, other in streams.changed.items()
    }


class Normalizer:
    """Sums of exponentials over logits that come in slices, each row's largest kept aside.

    Args:
        rows: how many rows of logits.
    """

    def __init__(self, rows: int) -> None:
        self.top = np.full(rows, -np.inf)
        self.sum = np.zeros(rows)

    def add(self, logits: Floats) -> Floats:
        """Add a slice [rows, V]; returns the factor [rows] by which sums so far shrink."""
        top = np.maximum(self.top, logits.max(-1))
        shrink = np.exp(self.top - top)
        self.sum = self.sum * shrink + np.exp(logits - top[:, None]).sum(-1)
        self.top = top
        return np.asarray(shrink)

    @property
    def log(self) -> Floats:
        """Logarithm of the sum of exponentials, [rows]."""
        return np.asarray(self.top + np.log(self.sum))


def divergence(
    streams: Streams, head: Source, rows: Batch, piece: int = 1 << 24
) -> dict[int, float]:
    """KL divergence of each changed stream's logits from those of the float one, in nats a token.

    With logits p of the float stream and q of another, it is the mean of p - q under the softmax
    of p, less the difference of their normalizers. The head is read a few rows at a time.

    Args:
        streams: after the last piece, [B, S, H] each.
        head: the head's weight, [V, H].
        rows: the probe rows.
        piece: numbers of the head, and of logits, that are held at a time.
    """
    assert streams.probe is not None
    width = streams.probe.shape[-1]
    exact = tokens_of(rows, streams.probe)
    others = {number: tokens_of(rows, x) for number, x in streams.changed.items()}
    tokens, vocabulary = len(exact), head.parts[0][1][0]
    float_ = Normalizer(tokens)
    changed = {number: Normalizer(tokens) for number in others}
    means = {number: np.zeros(tokens) for number in others}
    step = max(1, piece // max(width, tokens))
    for start in range(0, vocabulary, step):
        (part,) = head.read(start, min(start + step, vocabulary))
        matrix = np.ascontiguousarray(part, np.float32).T
        p = (exact @ matrix).astype(np.float64)
        shrink = float_.add(p)
        weights = np.exp(p - float_.top[:, None])
        for number, stream in others.items():
            q = (stream @ matrix).astype(np.float64)
            changed[number].add(q)
            means[number] = means[number] * shrink + np.einsum("tv,tv->t", weights, p - q)
    return {
        number: max(float((mean / float_.sum - float_.log + changed[number].log).mean()), 0.0)
        for number, mean in means.items()
    }
