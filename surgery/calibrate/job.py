"""The calibration of a checkpoint: one sweep over the decoder, and a plan by what it measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import quant
from surgery.base import manifest
from surgery.calibrate import plan as plans
from surgery.calibrate.experts import quantized
from surgery.calibrate.pieces import Piece, cut
from surgery.calibrate.plan import EIGHT, Plan, base_format
from surgery.calibrate.state import Kept, blamed
from surgery.calibrate.sweep import (
    Batch,
    Candidate,
    Measured,
    Streams,
    candidates,
    distances,
    divergence,
    observe,
    probe,
)
from surgery.match.products import Product, product_of

LIBRARIES = ("numpy", "onnxruntime")
"""Whose versions decide the last bits of a result."""

Tell = Callable[[int, int], None]
"""Called with the number of pieces done and in all."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a calibration is about.

    Attributes:
        model: the float graph, in topological order, all passes before quantization done.
        head: names that the head's weight may have; none where the graph makes no logits.
        skip: weights that are not calibrated: the head's, and those of routers.
        symmetric: whether 4-bit blocks go without zero points.
        block: most 4-bit weights that share a scale.
        scales: dtype of scales as stored.
        folder: where results are kept; its name says what decides them (`digest`).
        experts: the format of fused experts; None where they are not quantized.
        output: the output by which losses are measured where there is no head.
    """

    model: ir.Model
    head: frozenset[str]
    skip: frozenset[str]
    symmetric: bool
    block: int
    scales: ir.DataType
    folder: Path
    experts: quant.BlockFormat | None = None
    output: str = ""

    @property
    def kept(self) -> Kept:
        """Its files."""
        return Kept(self.folder, self.symmetric, self.block, np.dtype(self.scales.numpy()))


def ends(work: Work) -> tuple[ir.Value, Product | None]:
    """The last value that calibrated weights make, and the head behind it, if there is one.

    Raises:
        ValueError: no product has the head's weight.
    """
    if work.head:
        return head_input(work.model, work.head)
    return next(v for v in work.model.graph.outputs if v.name == work.output), None


def head_input(model: ir.Model, names: frozenset[str]) -> tuple[ir.Value, Product]:
    """What the head reads, and the head.

    Raises:
        ValueError: no product has a weight of these names.
    """
    for node in reversed(list(model.graph)):
        product = product_of(node)
        if product is not None and product.name in names:
            x = node.inputs[0]
            assert x is not None
            return x, product
    raise ValueError(f"no product with the head's weight, {' or '.join(sorted(names))}")


def sweep(
    work: Work,
    batches: Sequence[Batch],
    rows: Batch,
    tell: Tell = lambda done, total: None,
) -> list[Measured]:
    """Quantize every weight, piece by piece; an interrupted sweep goes on where it stopped.

    Args:
        work: what to calibrate.
        batches: calibration tokens as the decoder reads them.
        rows: probe tokens.
        tell: called with the number of pieces done and in all.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    last, head = ends(work)
    pieces = list(cut(work.model, last, work.skip))
    done, streams, measured = work.kept.state() or (0, Streams(), [])
    tell(done, len(pieces))
    for number, piece in enumerate(pieces[done:], done):
        weights = {product.name: product.matrix() for product in piece.products}
        seen = observe(piece, batches, weights, streams.main)
        found = measure(piece, weights, seen.sums, work)
        probe(piece, number, rows, weights, found, streams)
        found += measure_experts(piece, seen.routed, work)
        streams.main = seen.leaving
        with blamed(work.folder):
            for one in found:
                keep(one, work)
        measured.append(found)
        piece.release()
        work.kept.save_state(number + 1, streams, measured)
        tell(number + 1, len(pieces))
    losses = distances(streams, rows) if head is None else divergence(streams, head.source, rows)
    for number, group in enumerate(measured):
        for one in group:
            one.loss = losses[number] * one.share
    flat = [one for group in measured for one in group]
    work.kept.finish(flat)
    return flat


def measure(
    piece: Piece,
    weights: Mapping[str, npt.NDArray[np.float32]],
    sums: dict[str, quant.Hessian],
    work: Work,
) -> list[Measured]:
    """Quantize the weights of a piece in every format; those with one input share its Hessian."""
    found = {}
    for name in piece.observed:
        total = sums.pop(name)
        tokens, hessian = total.count, total.estimate()
        del total  # [K, K] for K of 10,000 takes 0.4 GB
        factor = quant.factor(hessian)
        for product in piece.products:
            if product.input != name:
                continue
            weight = weights[product.name]
            base = base_format(weight.shape[1], work.symmetric, work.block)
            forms = candidates(weight, hessian, factor, (base, EIGHT), work.scales.numpy())
            norm = float(np.einsum("nk,nk->", weight @ hessian, weight, dtype=np.float64))
            n, k = weight.shape
            found[product.name] = Measured(
                product.name, (n, k), forms, norm, tokens, factor.damping
            )
    return [found[product.name] for product in piece.products]


def measure_experts(
    piece: Piece, routed: Mapping[str, npt.NDArray[np.float32]], work: Work
) -> list[Measured]:
    """Quantize the experts of a piece, where they are to be quantized."""
    found: list[Measured] = []
    form = work.experts
    if form is None:
        return found
    for mixture in piece.mixtures:
        x, logits = (routed[name] for name in mixture.inputs)
        for stack in quantized(mixture, x, logits, form, work.scales.numpy()):
            experts, n, k = stack.shape
            candidate = Candidate(stack.blocks, stack.error, stack.blocks.nbytes)
            found.append(
                Measured(
                    stack.name, (experts * n, k), {form: candidate}, stack.norm, len(x), 0.0,
                    share=0.0, stack=experts, own=stack.own,
                )
            )  # fmt: skip
    return found


def keep(one: Measured, work: Work) -> None:
    """Write the base candidate to disk and let go of all blocks; 8 bits are rounded anew."""
    base = next(iter(one.candidates.values())).blocks
    assert base is not None
    work.kept.store.write(one.name, base)
    for candidate in one.candidates.values():
        candidate.blocks = None


def decide(
    work: Work, measured: Sequence[Measured], bits: float, keep: str | None, strict: bool = True
) -> Plan:
    """Spend a budget of bits by what was measured; the arguments are those of `plan.choose`.

    Raises:
        UserError: the budget is below the smallest formats, or `keep` is no regular expression.
    """
    sizes, offers = {}, {}
    single = [one for one in measured if one.stack == 1]
    for one in single:
        first = next(iter(one.candidates.values()))
        scale = one.loss / first.error if first.error > 0 else 0.0
        sizes[one.name] = one.shape
        offers[one.name] = [
            quant.Choice(form, candidate.nbytes, scale * candidate.error)
            for form, candidate in one.candidates.items()
        ]
    chosen = plans.choose(sizes, offers, bits, keep, strict)
    rows = []
    for one in single:
        choice = chosen[one.name]
        form = choice.format
        error = None if form is None else relative(one, form)
        worst = () if form is None else one.candidates[form].worst
        rows.append(plans.row(one.name, one.shape, choice, error, worst))
    return Plan(
        formats={name: choice.format for name, choice in chosen.items()},
        rows=tuple(rows),
        bits=plans.total_bits(sizes, chosen),
        measured=True,
        store=work.kept.store,
        kept={one.name: next(iter(one.candidates)) for one in measured},
        experts=tuple(experts(one) for one in measured if one.stack > 1),
        scales=work.scales,
    )


def relative(one: Measured, form: quant.BlockFormat) -> float:
    """Error of a weight's output over the output, as root mean squares."""
    return math.sqrt(one.candidates[form].error / one.norm) if one.norm else 0.0


def experts(one: Measured) -> plans.Experts:
    """The entry of a plan for a stack of matrices."""
    ((form, candidate),) = one.candidates.items()
    n, k = one.shape
    return plans.Experts(
        one.name,
        (one.stack, n // one.stack, k),
        form.bits,
        form.block,
        candidate.nbytes,
        relative(one, form),
        one.own,
    )


def digest(parts: Sequence[object]) -> str:
    """A name for everything that decides an outcome: `parts`, the method, and its libraries.

    The method is the source text of `quant` and of this package, so that a change of it never
    takes the results of the version before for its own.
    """
    found = hashlib.sha256()
    for folder in (Path(quant.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.glob("*.py")):
            found.update(file.read_bytes())
    about = [found.hexdigest(), manifest.versions(LIBRARIES), *parts]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
