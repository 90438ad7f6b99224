"""The calibration of a checkpoint: tokens, one sweep over the decoder, a plan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import quant
from surgery.calibrate import plan as plans
from surgery.calibrate.pieces import Array, Piece, cut
from surgery.calibrate.plan import EIGHT, Plan, base_format
from surgery.calibrate.sampler import Sampler, Tokens
from surgery.calibrate.store import Store
from surgery.calibrate.sweep import (
    Batch,
    Candidate,
    Measured,
    Streams,
    candidates,
    divergence,
    observe,
    probe,
)
from surgery.match.products import Product, product_of

VERSION = 1
"""Counts up when the method changes, so that earlier results are not taken for its own."""
LENGTH = 256
"""Tokens of a row of text."""
PICTURES, ANSWER = 8, 48
"""Prompts with a picture, and most tokens of an answer."""
STATE = "state.npz"
"""File of an unfinished or finished sweep."""
PROBE = 32
"""Tokens of a probe row: short rows give many independent samples."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a calibration is about.

    Attributes:
        model: the float decoder, in topological order, all passes before quantization done.
        skip: weights that are not calibrated, such as the head.
        symmetric: whether 4-bit blocks go without zero points.
        scales: dtype of scales as stored.
        digest: of the checkpoint and everything else that decides the outcome.
        folder: where results are kept.
    """

    model: ir.Model
    skip: frozenset[str]
    symmetric: bool
    scales: ir.DataType
    digest: str
    folder: Path

    @property
    def store(self) -> Store:
        """The quantized weights."""
        return Store(self.folder / self.digest[:16] / "weights")

    def path(self, name: str) -> Path:
        """A file of this calibration."""
        return self.folder / self.digest[:16] / name


def head_input(model: ir.Model, skip: frozenset[str]) -> tuple[ir.Value, Product]:
    """What the head reads, and the head."""
    for node in reversed(list(model.graph)):
        product = product_of(node)
        if product is not None and product.name in skip:
            x = node.inputs[0]
            assert x is not None
            return x, product
    raise ValueError("the graph has no product with a head")


def sweep(
    work: Work,
    batches: Sequence[Batch],
    rows: Batch,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measured]:
    """Quantize every weight, piece by piece; an interrupted sweep goes on where it stopped.

    Args:
        work: what to calibrate.
        batches: calibration tokens as the decoder reads them.
        rows: probe tokens.
        tell: called with the number of pieces done and in all.
    """
    hidden, head = head_input(work.model, work.skip)
    pieces = list(cut(work.model, hidden))
    done, streams, measured = resume(work)
    tell(done, len(pieces))
    for number, piece in enumerate(pieces[done:], done):
        weights = {product.name: product.matrix() for product in piece.products}
        leaving, sums = observe(piece, batches, weights, streams.main)
        found = measure(piece, weights, sums, work)
        probe(piece, number, rows, weights, found, streams)
        streams.main = leaving
        for one in found:
            keep(one, work)
        measured.append(found)
        vars(piece).pop("session", None)
        save(work, number + 1, streams, measured)
        tell(number + 1, len(pieces))
    matrix = head.matrix()
    losses = divergence(streams, lambda x: x @ matrix.T)
    for number, group in enumerate(measured):
        for one in group:
            one.loss = losses[number] * one.share
    return [one for group in measured for one in group]


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
        hessian = total.matrix()
        factor = quant.factor(hessian)
        for product in piece.products:
            if product.input != name:
                continue
            weight = weights[product.name]
            base = base_format(weight.shape[1], work.symmetric)
            forms = candidates(weight, hessian, factor, (base, EIGHT), work.scales.numpy())
            norm = float(np.einsum("nk,nk->", weight @ hessian, weight, dtype=np.float64))
            n, k = weight.shape
            found[product.name] = Measured(
                product.name, (n, k), forms, norm, total.count, factor.damping
            )
    return [found[product.name] for product in piece.products]


def keep(one: Measured, work: Work) -> None:
    """Write the base candidate to disk and let go of all blocks; 8 bits are rounded anew."""
    base = next(iter(one.candidates.values())).blocks
    assert base is not None
    work.store.write(one.name, base)
    for candidate in one.candidates.values():
        candidate.blocks = None


def save(work: Work, done: int, streams: Streams, measured: list[list[Measured]]) -> None:
    """Keep the state of a sweep, whole or not at all."""
    path = work.path(STATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = [[figures(one) for one in group] for group in measured]
    assert streams.probe is not None
    arrays: dict[str, Any] = {
        **{f"main.{i}": array for i, array in enumerate(streams.main)},
        **{f"changed.{number}": array for number, array in streams.changed.items()},
        "probe": streams.probe,
        "about": np.array(json.dumps({"done": done, "measured": groups})),
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def figures(one: Measured) -> dict[str, Any]:
    """What is known of a weight as plain data."""
    first, second = one.candidates.values()
    return {
        "name": one.name, "shape": one.shape, "norm": one.norm, "tokens": one.tokens,
        "damping": one.damping, "share": one.share,
        "errors": [first.error, second.error], "nbytes": [first.nbytes, second.nbytes],
    }  # fmt: skip


def resume(work: Work) -> tuple[int, Streams, list[list[Measured]]]:
    """The state of an earlier sweep of the same work, or a fresh one."""
    path = work.path(STATE)
    if not path.is_file():
        return 0, Streams(), []
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        streams = Streams(
            [arrays[f"main.{i}"] for i in range(sum(n.startswith("main.") for n in arrays.files))],
            arrays["probe"],
            {int(n.split(".")[1]): arrays[n] for n in arrays.files if n.startswith("changed.")},
        )
    measured = [[restored(one, work.symmetric) for one in group] for group in about["measured"]]
    return int(about["done"]), streams, measured


def restored(data: dict[str, Any], symmetric: bool) -> Measured:
    """The inverse of `figures`."""
    n, k = data["shape"]
    base = base_format(k, symmetric)
    forms = {
        form: Candidate(None, error, nbytes)
        for form, error, nbytes in zip((base, EIGHT), data["errors"], data["nbytes"], strict=True)
    }
    return Measured(
        data["name"], (n, k), forms, data["norm"], data["tokens"], data["damping"], data["share"]
    )


def decide(work: Work, measured: Sequence[Measured], bits: float, keep: str | None) -> Plan:
    """Spend a budget of bits by what was measured."""
    sizes, offers = {}, {}
    for one in measured:
        first = next(iter(one.candidates.values()))
        scale = one.loss / first.error if first.error > 0 else 0.0
        sizes[one.name] = one.shape
        offers[one.name] = [
            quant.Choice(form, candidate.nbytes, scale * candidate.error)
            for form, candidate in one.candidates.items()
        ]
    chosen = plans.choose(sizes, offers, bits, keep)
    rows = []
    for one in measured:
        choice = chosen[one.name]
        error = None
        if choice.format is not None:
            error = math.sqrt(one.candidates[choice.format].error / one.norm) if one.norm else 0.0
        rows.append(plans.row(one.name, one.shape, choice, error))
    return Plan(
        formats={name: choice.format for name, choice in chosen.items()},
        rows=tuple(rows),
        bits=plans.total_bits(sizes, chosen),
        measured=True,
        store=work.store,
        kept={one.name: next(iter(one.candidates)) for one in measured},
        scales=work.scales,
    )


def batches_of(
    sampler: Sampler, tokens: int, inputs: Sequence[ir.Value]
) -> tuple[list[Batch], Batch]:
    """Calibration tokens and probe rows as the decoder reads them.

    Args:
        sampler: writes the tokens.
        tokens: how many of text; pictures come in addition.
        inputs: of the decoder graph; caches are empty.
    """
    found = []
    for part in sampler.text(max(2, tokens // LENGTH), LENGTH):
        found.append(part)
    found += list(sampler.pictures(PICTURES, ANSWER))
    batches: list[Batch] = [with_cache(sampler.embed(part), inputs) for part in found]
    layers = sum((value.name or "").endswith(".key") for value in inputs)
    rows = min(64, max(4, tokens // max(layers, 1) // PROBE))
    text = np.concatenate([part.ids for part in found if part.ids.shape[1] == LENGTH])
    short = text.reshape(-1, PROBE)
    picked = short[np.linspace(0, len(short) - 1, rows).astype(int)]
    places = np.broadcast_to(np.arange(PROBE), (3, rows, PROBE)).astype(np.int64)
    probes = sampler.embed(Tokens(picked, sampler.nothing(), places))
    return batches, with_cache(probes, inputs)


def with_cache(feeds: dict[str, Array], inputs: Sequence[ir.Value]) -> dict[str, Array]:
    """Graph inputs with an empty cache."""
    rows = len(feeds["inputs_embeds"])
    for value in inputs:
        if (value.name or "").startswith("past_key_values.") and value.shape is not None:
            _, heads, _, width = (d if isinstance(d, int) else 0 for d in value.shape)
            feeds[value.name or ""] = np.zeros((rows, heads, 0, width), np.float32)
    return feeds


def digest(parts: Sequence[object]) -> str:
    """A name for everything that decides an outcome."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()
