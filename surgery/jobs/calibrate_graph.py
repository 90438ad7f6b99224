"""A plan for a graph of another exporter, from example inputs of its user."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from surgery.base.console import announce
from surgery.base.errors import UserError, first_line
from surgery.base.shards import sample_digest
from surgery.calibrate import job
from surgery.calibrate.arrays import batches_from, digest
from surgery.calibrate.plan import Plan
from surgery.engine.loading import load_any
from surgery.engine.options import GENAI, Settings
from surgery.engine.step import Recipe
from surgery.jobs.calibrate import FOLDER, before_quantization, measured_by
from surgery.match.caches import caches
from surgery.match.products import linear
from surgery.package.external_data import files_read
from surgery.passes import LastLogits, SkipBias, SkipLayerNorm, SkipRmsNorm

LEFT_OUT = (LastLogits, SkipLayerNorm, SkipRmsNorm, SkipBias)
"""Passes that the graph to be cut goes without: every position counts, and a norm that is fused
with the sum before it hands on both, so that no single activation crosses between layers."""


def calibrated(
    path: Path, recipe: Recipe[Settings], settings: Settings, folder: Path = FOLDER
) -> Plan:
    """Run the example inputs through the float graph, and spend the budget of bits.

    Losses are KL divergences of the logits where the graph makes some, or else how far its first
    output of floating-point numbers moves. Interrupted, a second run goes on; a finished
    calibration is kept in `folder`.

    Args:
        path: the graph.
        recipe: the passes that will run on it.
        settings: with the options of the run.
        folder: where results are kept.

    Returns:
        The plan for the graph's linear weights.

    Raises:
        UserError: the inputs do not fit the graph, or it has no product that they reach.
        OutputError: the folder cannot be written, or another run is at the same calibration.
    """
    own = Path(settings.options.calibrate or "")
    work = prepared(path, recipe, settings, folder / identity(path, settings, own)[:16])
    settings.plan_weights(work.model)
    pasts = {cache.past.name or "" for group in caches(work.model) for cache in group}
    batches = batches_from(own, list(work.model.graph.inputs), pasts)
    with blaming(own):
        measured = measured_by(work, lambda *shown: batches)
    rest = {p.name for p in linear(work.model, settings.not_planned)} - {m.name for m in measured}
    if rest:
        announce(f"not calibrated, rounded to nearest: {', '.join(sorted(rest))}")
    return job.decide(work, measured, settings.bits, settings.options.keep, settings.strict)


def prepared(path: Path, recipe: Recipe[Settings], settings: Settings, folder: Path) -> job.Work:
    """What to calibrate: the float graph as it is before quantization, for the CPU.

    Raises:
        UserError: the graph has no linear weight, or no output that depends on one.
    """
    options = replace(settings.options, execution_provider="cpu", runtime=GENAI, prefill="same")
    model = load_any(path)
    before_quantization(model, recipe, replace(settings, options=options), LEFT_OUT)
    if not linear(model, settings.not_planned):
        raise UserError(f"--calibrate {options.calibrate}: the graph has no weight to calibrate.")
    heads = frozenset(p.name for p in linear(model, lambda name: not settings.is_head(name)))
    return job.Work(
        model,
        heads,
        frozenset(name for name in model.graph.initializers if settings.not_planned(name)),
        options.symmetric,
        options.block_size,
        settings.text_dtype,
        folder,
        output="" if heads else first_output(model, options.calibrate),
    )


@contextlib.contextmanager
def blaming(examples: Path) -> Iterator[None]:
    """Let an error of onnxruntime be one of the inputs that it ran on."""
    try:
        yield
    except Exception as e:
        if not type(e).__module__.startswith("onnxruntime"):
            raise
        raise UserError(
            f"--calibrate {examples}: the graph does not run on them: {first_line(e)}"
        ) from e


def first_output(model: ir.Model, examples: str | None) -> str:
    """The name of the first output of floating-point numbers.

    Raises:
        UserError: there is none.
    """
    for value in model.graph.outputs:
        floats = value.dtype is not None and value.dtype.is_floating_point()
        if floats and value.producer() is not None and value.name:
            return value.name
    raise UserError(f"--calibrate {examples}: the graph has no output of floating-point numbers.")


def identity(path: Path, settings: Settings, own: Path) -> str:
    """A digest of everything that decides the outcome of a calibration."""
    data = [sample_digest(file) for file in sorted(files_read(load_any(path)))]
    graph = hashlib.sha256(path.read_bytes()).hexdigest()
    options = settings.options
    formats = [options.symmetric, options.block_size, str(settings.text_dtype), options.max_length]
    return job.digest([graph, data, formats, digest(own)])
