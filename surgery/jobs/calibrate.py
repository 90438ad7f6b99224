"""A plan from the checkpoint's own activations, before the package is built."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from surgery.base.console import console, progress
from surgery.calibrate import job
from surgery.calibrate.plan import Plan
from surgery.calibrate.sampler import Sampler
from surgery.engine.facts import Facts
from surgery.engine.loading import load
from surgery.engine.recipes.qwen_vl import DECODER
from surgery.passes import HiddenStates, LastLogits, MatMulNBits

FOLDER = Path("build/calibration")
"""Where results are kept, by what decides them: a second build takes them from here."""
TOKENS = 8192
"""Tokens of text that calibrate."""
SEED = 0


def calibrated(
    facts: Facts, build: Callable[[Facts, Path], None], folder: Path = FOLDER, tokens: int = TOKENS
) -> Plan:
    """Sample tokens, sweep over the decoder, and spend the budget of bits.

    Args:
        facts: the raw export and the options.
        build: writes a package with the given facts into a new directory: the tokens are sampled
            from a package that is rounded without calibration.
        folder: where results are kept.
        tokens: of text.

    Returns:
        The plan for the decoder's linear weights.
    """
    model = load(facts.raw / "decoder.onnx", facts.weights)
    for step in DECODER:
        if step.work is MatMulNBits:
            break
        if step.work not in (LastLogits, HiddenStates) and step.when(facts):
            step.make(facts)(model)
    model.graph.sort()
    shards = [
        [name, digest, (facts.weights / name).stat().st_size]
        for name, digest in sorted(facts.manifest["headers"].items())
    ]
    about = [shards, facts.config, tokens, SEED, facts.options.symmetric, str(facts.text_dtype)]
    work = job.Work(
        model,
        frozenset(name for name in model.graph.initializers if facts.not_planned(name)),
        facts.options.symmetric,
        facts.text_dtype,
        job.digest(about),
        folder,
    )
    with progress() as bar:
        task = bar.add_task("sampling tokens", total=None)
        with tempfile.TemporaryDirectory(prefix="surgery-", dir=raw_parent(facts)) as temporary:
            rounded = Path(temporary) / "package"
            options = dataclasses.replace(facts.options, preset="fast", execution_provider="cpu",
                                          precision="fp32", hidden_states=False, bits=None,
                                          keep=None)  # fmt: skip
            build(dataclasses.replace(facts, options=options), rounded)
            sampler = Sampler(rounded, SEED)
            batches, rows = job.batches_of(sampler, tokens, list(model.graph.inputs))
        bar.update(task, description="calibrating", total=1)
        measured = job.sweep(
            work,
            batches,
            rows,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    plan = job.decide(work, measured, facts.bits, facts.options.keep)
    console.print(f"calibrated {len(measured)} weights: {plan.bits:.2f} bits each", markup=False)
    return plan


def raw_parent(facts: Facts) -> Path:
    """A folder on the disk of the raw export: a package that is only sampled from fits there."""
    return facts.raw.resolve().parent
