"""The package computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from surgery.answer.pytorch import Answer, Asked, PyTorch
from surgery.answer.runtime import Prompt, Runtime
from surgery.base.errors import PackageError
from surgery.rewrite.shortlists import TOKENS
from surgery.verify.finding import Finding, close
from surgery.verify.float_cache import with_float_cache
from surgery.verify.lengths import LONG, as_form, forms, labelled
from surgery.verify.opened import QUANTIZED, Opened
from surgery.verify.rounding import compare as compare_weight
from surgery.verify.rounding import every, unpacked
from surgery.verify.runtime import QUESTION, open_runtime, sample
from surgery.verify.twin import twin
from surgery.verify.whole_head import WHOLE, shortlist, with_whole_head

STEPS = 8
COUNTS = 0, 1, 2
"""Pictures that are asked about."""

OTHERWISE, FURTHEST = 0.25, 0.5
"""Share of steps that may have asked other experts, and how far off they may be, of the largest
logit."""

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "int8": 5e-2, "int4": 5e-2}
"""Of the largest logit. A package with quantized weights is held to PyTorch with the unpacked ones;
what is left is the rounding of activations to int8 (accuracy level 4)."""
SURE = 4
"""Of a head that computes the logits of a few tokens, this part of them is held to PyTorch: which
tokens are the last of the few is not the same."""
CACHE = 5e-2
"""What is added where keys and values are stored in 8 bits; with a cache in float such a package is
held to the above, too."""


def check_logits(
    package: Opened, checkpoint: str | Path, cache_dir: str | None, revision: str | None
) -> Iterator[Finding]:
    """Prompts token by token, logits along PyTorch's own answer.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    try:
        runtime = open_runtime(package)
    except PackageError as e:
        yield Finding("logits", f"made for {package.provider}, not run: {e}")
        return
    with PyTorch.running(checkpoint, cache_dir, revision) as pytorch:
        if package.precision in QUANTIZED:
            yield from check_weights(package, pytorch)
        for form in forms(package):
            if package.precision in QUANTIZED:
                pytorch.replace(unpacked(package, form == LONG))
            changes, how = [as_form(form)] if form else [], labelled("", form)
            if shortlist(package) is not None:
                changes, how = [*changes, with_whole_head], labelled(how, WHOLE)
            if package.quantized_cache:
                in_float = [*changes, with_float_cache]
                yield from compare_twin(package, in_float, pytorch, f", cache in float{how}")
            if changes:
                yield from compare_twin(package, changes, pytorch, how)
            if not form:
                for count in COUNTS:
                    yield compare(package, runtime, pytorch, count)


def compare_twin(
    package: Opened,
    changes: Sequence[Callable[[onnx.GraphProto], None]],
    pytorch: PyTorch,
    how: str,
) -> Iterator[Finding]:
    """Hold the package with a changed decoder to PyTorch."""

    def change(graph: onnx.GraphProto) -> None:
        for one in changes:
            one(graph)

    with twin(package, change) as changed:
        runtime = open_runtime(changed)
        for count in COUNTS:
            yield compare(changed, runtime, pytorch, count, how)
        del runtime  # files are mapped, and Windows removes no open file


def check_weights(package: Opened, pytorch: PyTorch) -> Iterator[Finding]:
    """Hold every quantized weight to the checkpoint's; those that are right are one finding."""
    findings = [
        compare_weight(
            found, pytorch.weight(found.name), found.name in package.calibrated and not found.long
        )
        for found in every(package)
    ]
    wrong = [finding for finding in findings if finding.problem]
    yield from wrong
    if not wrong:
        yield Finding("quantized weights", f"{len(findings)}, each near the checkpoint's")


def compare(
    package: Opened, runtime: Runtime, pytorch: PyTorch, count: int, how: str = ""
) -> Finding:
    """Both on one question about `count` pictures; `how` the package runs is for the finding."""
    what = f"logits, {count} pictures{how}"
    pictures = [runtime.sizing.apply(picture) for picture in sample(runtime.sizing, count)]
    asked = pytorch.prompt(QUESTION, pictures)
    prompt = runtime.prompt(runtime.ask(QUESTION, count), pictures)
    both = followed(what, runtime, prompt, pytorch, asked)
    if isinstance(both, Finding):
        return both
    logits, answer = both
    differences = abs(logits - answer.logits)
    listed = shortlist(package)
    if listed is not None:
        likeliest = np.argsort(-answer.logits)[:, : listed // SURE]
        differences = np.take_along_axis(differences, likeliest, axis=-1)
        what += f", the {likeliest.shape[1]} likeliest tokens"
    steps = differences.max(axis=-1)
    scale = float(abs(answer.logits).max())
    tolerance = TOLERANCE[package.precision] + (CACHE if package.quantized_cache else 0.0)
    if may_choose_otherwise(package):
        return with_experts(what, steps, scale, tolerance)
    return close(what, float(steps.max()), scale, tolerance)


def followed(
    what: str, runtime: Runtime, prompt: Prompt, pytorch: PyTorch, asked: Asked
) -> tuple[np.ndarray, Answer] | Finding:
    """The package's logits `[STEPS, V]` along PyTorch's own answer, and that answer.

    Args:
        what: what is compared, for a finding.
        runtime: the package.
        prompt: for it.
        pytorch: the checkpoint.
        asked: the same prompt, for it.

    Returns:
        A finding where the two cannot be compared: other tokens in, or logits of another number.
    """
    if not np.array_equal(asked.ids, prompt.ids):
        problem = f"prompt of {prompt.length} tokens, PyTorch has {len(asked.ids)} others"
        return Finding(what, problem=problem)
    answer = pytorch.generate(asked, STEPS, stop=False)
    logits = runtime.follow(prompt, answer.tokens)
    if logits.shape != answer.logits.shape:
        problem = f"{logits.shape[1]} logits, PyTorch has {answer.logits.shape[1]}"
        return Finding(what, problem=problem)
    return logits, answer


def with_experts(what: str, steps: np.ndarray, scale: float, tolerance: float) -> Finding:
    """A finding on steps a few of which may have asked other experts.

    Those that are further off are counted and shown, not hidden: `OTHERWISE` of them may be, and
    by `FURTHEST` of the largest logit at most.
    """
    off = steps[~(steps <= tolerance * scale)]  # NaN is off
    within = float(np.delete(steps, np.flatnonzero(~(steps <= tolerance * scale))).max(initial=0))
    note = f"max difference {within:.1e} (largest value {scale:.1f})"
    if not len(off):
        return Finding(what, note)
    note += f", but in {len(off)} of {len(steps)} steps up to {off.max():.1e}"
    if len(off) <= OTHERWISE * len(steps) and off.max() <= FURTHEST * scale:
        return Finding(what, f"{note}, which other experts explain")
    return Finding(what, problem=f"{note}: more than other experts explain")


def may_choose_otherwise(package: Opened) -> bool:
    """Whether rounding may choose other experts, where two are nearly as good.

    The logits of such a step differ by as much as the experts do; those of most steps do not.
    """
    nodes = package.graphs["decoder"].graph
    ops = {node.op_type for node in nodes if TOKENS not in {v.name for v in node.inputs if v}}
    rounded = package.precision != "fp32" or package.quantized_cache
    return rounded and not ops.isdisjoint(("MoE", "QMoE", "TopK"))
