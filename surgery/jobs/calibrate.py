"""A plan from the checkpoint's own activations, before the package is built."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import onnx_ir as ir
from rich.progress import Progress, TaskID

from surgery.base import locks
from surgery.base.console import announce, progress
from surgery.base.errors import OutputError
from surgery.base.processes import return_memory
from surgery.base.shards import sample_digest
from surgery.calibrate import job
from surgery.calibrate.batches import (
    ANSWER,
    LENGTH,
    PICTURES,
    PROBE,
    batches_from,
    batches_of,
)
from surgery.calibrate.examples import digest, read_examples
from surgery.calibrate.plan import Plan
from surgery.calibrate.sampler import Sampler
from surgery.calibrate.state import blamed
from surgery.calibrate.sweep import Batch, Measured
from surgery.engine.facts import Facts
from surgery.engine.loading import load
from surgery.engine.options import GENAI, Options
from surgery.engine.recipes.qwen_vl import DECODER
from surgery.engine.step import Recipe, S
from surgery.passes import HiddenStates, LastLogits, MatMulNBits, SkipRmsNorm
from surgery.rewrite.contract import Pass

FOLDER = Path("build/calibration")
"""Where results are kept, by what decides them: a second build takes them from here."""
TOKENS = 8192
"""Tokens of text that calibrate."""
SEED = 0
CONTEXT = 8192
"""Context of the package that tokens are sampled from: room for a picture and an answer."""
PERIOD = 3600.0
"""Seconds whose pieces tell the time left."""

LEFT_OUT = (LastLogits, HiddenStates, SkipRmsNorm)
"""Passes that the graph to be cut goes without: every position counts, and a norm that is fused
with the sum before it hands on both, so that no single activation crosses between layers."""

Build = Callable[[Facts, Path], None]
Tokens = Callable[[Progress, TaskID], tuple[list[Batch], Batch]]
"""Makes the calibration tokens and the probe rows, and shows how far it is."""


def calibrated(facts: Facts, build: Build, folder: Path = FOLDER, tokens: int = TOKENS) -> Plan:
    """Sample or read tokens, sweep over the decoder, and spend the budget of bits.

    A run that is interrupted leaves what it has finished, and the next one goes on from there; a
    finished calibration is taken from `folder` without any forward pass.

    Args:
        facts: the raw export and the options.
        build: writes a package with the given facts into a new directory: the tokens are sampled
            from a package that is rounded without calibration.
        folder: where results are kept.
        tokens: of text.

    Returns:
        The plan for the decoder's linear weights.

    Raises:
        UserError: a budget that is too small, a pattern that is no regular expression, or
            examples that cannot be read; all are found before any work.
        OutputError: the folder cannot be written, or another run is at the same calibration.
    """
    work = prepared(facts, folder, tokens)
    facts.plan_weights(work.model)
    measured = measured_by(work, lambda *shown: tokens_for(work, facts, build, tokens, *shown))
    return job.decide(work, measured, facts.bits, facts.options.keep, facts.strict)


def prepared(facts: Facts, folder: Path, tokens: int) -> job.Work:
    """What to calibrate: the float decoder as it is before quantization, for the CPU."""
    options = dataclasses.replace(
        facts.options, execution_provider="cpu", runtime=GENAI, kv_cache="float", prefill="same"
    )
    on_cpu = dataclasses.replace(facts, options=options)
    model = load(facts.raw / "decoder.onnx", facts.weights)
    before_quantization(model, DECODER, on_cpu, LEFT_OUT)
    names = list(model.graph.initializers)
    return job.Work(
        model,
        frozenset(name for name in names if facts.is_head(name)),
        frozenset(name for name in names if facts.not_planned(name)),
        facts.options.symmetric,
        facts.options.block_size,
        facts.text_dtype,
        folder / identity(facts, tokens)[:16],
        facts.expert_format,
    )


def before_quantization(
    model: ir.Model, recipe: Recipe[S], settings: S, left_out: Collection[type[Pass]]
) -> None:
    """Run the steps of a recipe in front of `matmul_nbits`, and sort the nodes.

    Args:
        model: a raw graph; changed in place.
        recipe: its steps.
        settings: of the run.
        left_out: passes that do not run.
    """
    for step in recipe:
        if step.work is MatMulNBits:
            break
        if step.work not in left_out and step.when(settings):
            step.make(settings)(model)
    model.graph.sort()


def identity(facts: Facts, tokens: int) -> str:
    """A digest of everything that decides the outcome of a calibration."""
    shards = [
        [name, header, sample_digest(facts.weights / name)]
        for name, header in sorted(facts.manifest["headers"].items())
    ]
    graphs = [
        hashlib.sha256((facts.raw / f"{part}.onnx").read_bytes()).hexdigest()
        for part in ("decoder", "embedding", "vision")
    ]
    tokenizer = hashlib.sha256((facts.checkpoint / "tokenizer.json").read_bytes()).hexdigest()
    sampled = [tokens, LENGTH, PICTURES, ANSWER, PROBE, SEED, tokenizer, facts.tokens.template]
    options, experts = facts.options, facts.expert_format
    formats = [options.symmetric, options.block_size, str(facts.text_dtype), str(experts)]
    own = facts.options.calibrate and digest(Path(facts.options.calibrate))
    return job.digest([shards, graphs, facts.config, sampled, formats, own])


def measured_by(work: job.Work, make: Tokens) -> list[Measured]:
    """What a calibration measured: an earlier one, or a sweep over tokens that are made now."""
    measured = work.kept.finished()
    if measured is not None:
        announce(f"calibration taken from {work.folder}")
        return measured
    return run(work, make)


def run(work: job.Work, make: Tokens) -> list[Measured]:
    """Calibrate, from where an earlier run stopped; say so if this one is stopped."""
    done, total = 0, 0
    with claimed(work.folder), progress(period=PERIOD) as bar:
        task = bar.add_task("sampling tokens", total=None)

        def tell(now: int, pieces: int) -> None:
            nonlocal done, total
            done, total = now, pieces
            bar.update(task, description="calibrating", completed=now, total=pieces)

        try:
            kept = work.kept.batches()
            if kept is None:
                kept = make(bar, task)
                work.kept.save_batches(*kept)
                return_memory()  # that of the sampler's graphs
                bar.reset(task)
            measured = job.sweep(work, *kept, tell)
        except KeyboardInterrupt:
            where = f"after {done} of {total} pieces" if total else "while tokens were sampled"
            announce(
                f"calibration stopped {where}; the same command goes on from there",
            )
            raise
    announce(f"calibrated {len(measured)} weights in {total} pieces")
    return measured


def tokens_for(
    work: job.Work, facts: Facts, build: Build, tokens: int, bar: Progress, task: TaskID
) -> tuple[list[Batch], Batch]:
    """Tokens that a package that is rounded writes itself, or those of the user's examples."""
    chosen = Options(max_length=CONTEXT, symmetric=facts.options.symmetric)
    own, inputs = facts.options.calibrate, list(work.model.graph.inputs)

    def tell(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    with temporary(work.folder / "rounded") as rounded:
        build(dataclasses.replace(facts, options=chosen, plan=None), rounded)
        sampler = Sampler(rounded, SEED)
        if own is None:
            return batches_of(sampler, tokens, inputs, tell)
        bar.update(task, description="reading examples")
        return batches_from(sampler, read_examples(Path(own)), inputs, tell)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs away from a calibration.

    Raises:
        OutputError: another run is at it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with blamed(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locks.locked(folder / ".lock"))
            except locks.Held as e:
                raise OutputError(
                    f"{folder}: another run is calibrating this checkpoint. Wait for its end."
                ) from e
            except OSError as e:
                if e.errno not in locks.UNSUPPORTED:
                    raise
        yield


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A folder that does not exist yet and is gone afterwards, also one that a killed run left."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with blamed(folder.parent):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
