"""Checks of a package of a language model: its graph runs, it answers, and equals PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surgery.answer.pytorch import PyTorch
from surgery.answer.runtime import GREEDY, on_cpu
from surgery.answer.text_runtime import TextRuntime
from surgery.base.errors import PackageError
from surgery.verify.finding import Finding, close
from surgery.verify.graphs import Array, RunError, Session, dtype, tolerance
from surgery.verify.lengths import forms, labelled
from surgery.verify.logits import STEPS, TOLERANCE, followed
from surgery.verify.opened import QUANTIZED, Opened
from surgery.verify.runtime import runs_on

QUESTIONS = ("What is the capital of France?", "Write a program.", "1, 2, 3, 4,")
LENGTH, SPLIT = 8, 5
"""Tokens that the graph reads at once, and those before it goes on one by one."""


def check_text_graph(package: Opened) -> Iterator[Finding]:
    """Run the decoder at once, and with its cache, and compare the logits, in each of its forms."""
    for form in forms(package):
        for finding in check_form(package, form):
            yield replace(finding, what=labelled(finding.what, form))


def check_form(package: Opened, form: str) -> Iterator[Finding]:
    """The same in one form."""
    file = package.path("decoder").name
    try:
        run = TextDecoder(package, form)
        ids = np.random.default_rng(1).integers(0, package.model["vocab_size"], (1, LENGTH))
        whole, _ = run(ids, None)
        logits, past = run(ids[:, :SPLIT], None)
        for i in range(SPLIT, LENGTH):
            logits, past = run(ids[:, i : i + 1], past)
    except RunError as e:
        if package.provider != "cpu" and "NOT_IMPLEMENTED" in str(e):
            kernel = f"not run: built for {package.provider}, and the CPU lacks a kernel"
            yield Finding(file, kernel)
        else:
            yield Finding(file, problem=f"does not run: {e}")
        return
    if not np.isfinite(whole).all():
        yield Finding("decoder", problem="logits are not finite")
        return
    yield Finding("decoder", f"{LENGTH} tokens at once")
    difference, scale = float(abs(logits - whole).max()), float(abs(whole).max())
    yield close("decoder, with its cache", difference, scale, tolerance(package, "decoder"))


class TextDecoder:
    """Runs a decoder that takes tokens."""

    def __init__(self, package: Opened, form: str) -> None:
        """Load the graph.

        Raises:
            RunError: onnxruntime cannot.
        """
        self.session, self.part = Session(package.path("decoder"), form), package.model["decoder"]
        layers, kinds = range(int(self.part["num_hidden_layers"])), ("key", "value")
        inputs, outputs = self.part["inputs"], self.part["outputs"]
        self.past, self.present = (
            [names[f"{when}_{kind}_names"].replace("%d", str(i)) for i in layers for kind in kinds]
            for names, when in ((inputs, "past"), (outputs, "present"))
        )
        self.dtype = dtype(package, "decoder", self.past[0])
        self.integer = dtype(package, "decoder", inputs["input_ids"])

    def __call__(self, ids: Array, past: list[Array] | None) -> tuple[Array, list[Array]]:
        """Logits `[1, V]` of the last position, float32, and the new cache.

        Args:
            ids: new tokens, `[1, S]`.
            past: the cache before them.

        Raises:
            RunError: the graph does not run.
        """
        names = self.part["inputs"]
        if past is None:
            shape = (1, self.part["num_key_value_heads"], 0, self.part["head_size"])
            past = [np.zeros(shape, self.dtype) for _ in self.past]
        old, new = past[0].shape[2], ids.shape[1]
        feed: dict[str, Any] = dict(zip(self.past, past))
        feed[names["input_ids"]] = ids.astype(self.integer)
        feed[names["attention_mask"]] = np.ones((1, old + new), self.integer)
        if "position_ids" in names:
            feed[names["position_ids"]] = np.arange(old, old + new, dtype=self.integer)[None]
        out = self.session(feed)
        logits = out[self.part["outputs"]["logits"]]
        return logits[:, -1].astype(np.float32), [out[name] for name in self.present]


def check_text_runtime(package: Opened) -> Iterator[Finding]:
    """Generate a few tokens in onnxruntime-genai, whose logits must be finite."""
    try:
        runtime = opened(package)
        yield runs_on(package)
        prompt = runtime.prompt(runtime.ask(QUESTIONS[0]))
        made = list(runtime.generate(prompt, STEPS, GREEDY))
        logits = runtime.follow(prompt, made or [0])
    except (PackageError, RuntimeError) as e:
        if package.provider == "cpu":
            yield Finding("answer", problem=str(e))
        else:
            yield Finding("answer", f"not run: built for {package.provider}: {e}")
        return
    fault = "" if np.isfinite(logits).all() else "logits are not finite"
    yield Finding("answer", f"{prompt.length} tokens in, {len(made)} out", fault)


def opened(package: Opened) -> TextRuntime:
    """The package in onnxruntime-genai: on the CPU, or on a plugin that is installed."""
    return TextRuntime(package.folder, on_cpu("decoder") if package.replaced else None)


def check_text_logits(
    package: Opened, checkpoint: str | Path, cache_dir: str | None, revision: str | None
) -> Iterator[Finding]:
    """Prompts token by token, logits and greedy tokens along PyTorch's own answer.

    Where weights are quantized, the differences are shown and not judged: the graph of another
    exporter does not say which parameter of the checkpoint a weight was.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    try:
        runtime = opened(package)
    except PackageError as e:
        yield Finding("logits", f"made for {package.provider}, not run: {e}")
        return
    with PyTorch.running(checkpoint, cache_dir, revision, text=True) as pytorch:
        for question in QUESTIONS:
            yield compare(package, runtime, pytorch, question)


def compare(package: Opened, runtime: TextRuntime, pytorch: PyTorch, question: str) -> Finding:
    """Both on one question."""
    what = f"logits, {question!r}"
    prompt = runtime.prompt(runtime.ask(question))
    both = followed(what, runtime, prompt, pytorch, pytorch.prompt(question))
    if isinstance(both, Finding):
        return both
    logits, answer = both
    equal = int((logits.argmax(-1) == answer.tokens).sum())
    tokens = f"{equal} of {len(answer.tokens)} tokens equal"
    precision = package.precision
    judged = precision not in QUANTIZED
    scale = float(abs(answer.logits).max())
    most = TOLERANCE[precision] if judged else float("inf")
    found = close(what, float(abs(logits - answer.logits).max()), scale, most)
    if precision == "fp32" and equal < len(answer.tokens) and not found.problem:
        return Finding(what, problem=f"{found.note}, {tokens}")
    words = tokens if judged else f"{tokens}; not judged, the weights are quantized"
    return Finding(what, found.note and f"{found.note}, {words}", found.problem)
