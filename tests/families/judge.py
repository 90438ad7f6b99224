"""What our recipes and other tools make of one graph: fused nodes, all nodes, and the numbers."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from surgery.engine import runner
from surgery.engine.loading import load_any
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.match.logits import head_weights
from surgery.rewrite import view

OPTIONS = Options(text_precision="fp32", max_length=512)
NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
ATTENTIONS = ("GroupQueryAttention", "MultiHeadAttention", "PackedAttention")
FAMILIES = ("bert", "gpt2")
"""Kinds of model that onnxruntime's optimizer is tried with; the smallest graph counts."""

SIZES = {"num_heads": 4, "hidden_size": 256}
"""What that optimizer is told; it reads the graph's own sizes where they differ."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """A graph after a tool.

    Attributes:
        nodes: nodes, constants not counted.
        fused: fused nodes by op type; "norms" for all RMS norms.
        error: the largest difference to the source graph, relative to its largest number; None
            where the result does not run.
    """

    nodes: int
    fused: dict[str, int]
    error: float | None = None


def ours(path: Path, recipe: str, feeds: Iterable[Feeds]) -> Verdict:
    """Our recipe."""
    model = operated(path, recipe)
    return verdict(model, differences(path, model, feeds))


def operated(path: Path, recipe: str) -> ir.Model:
    """The graph after our recipe."""
    model = load_any(path)
    settings = Settings(options=OPTIONS, head_widths=head_weights(model))
    for _ in runner.run(path.stem, model, GENERIC[recipe], settings):
        pass
    return model


def verdict(model: ir.Model, error: float | None = None) -> Verdict:
    """Count."""
    counts = view.histogram(model)
    fused: dict[str, int] = {}
    for op, n in counts.items():
        word = op.split("::")[-1]
        if op == "com.microsoft::Attention":
            word = "PackedAttention"  # not ONNX's op of that name
        fused[word] = fused.get(word, 0) + n
        if word in NORMS:
            fused["norms"] = fused.get("norms", 0) + n
    return Verdict(view.size(model), fused, error)


def session(model: ir.Model | Path) -> ort.InferenceSession:
    """A graph as it is, without the runtime's own rewriting."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else inline(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def inline(model: ir.Model) -> bytes:
    """A graph with its weights inside."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            array = np.array(tensor.numpy())
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    return bytes(ir.to_proto(copy).SerializeToString())


def differences(path: Path, model: ir.Model, cases: Iterable[Feeds]) -> float:
    """Largest relative difference over all cases and outputs, where rows and positions are real."""
    before, after = session(path), session(model)
    wanted = {i.name for i in after.get_inputs()}
    names = [o.name for o in before.get_outputs()]
    worst = 0.0
    for feeds in cases:
        known = {i.name for i in before.get_inputs()}
        given = {k: v for k, v in feeds.items() if k in known}
        olds = before.run(names, given)
        news = after.run(names, {k: v for k, v in given.items() if k in wanted})
        for name, old, new in zip(names, olds, news, strict=True):
            old, new = comparable(name, old, new, feeds.get("attention_mask"))
            assert old.shape == new.shape, (name, old.shape, new.shape)
            assert np.isfinite(new).all(), name
            worst = max(worst, float(np.abs(old - new).max() / np.abs(old).max()))
    return worst


def comparable(
    name: str, old: np.ndarray, new: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both outputs where they mean something: not behind the end of a padded row."""
    last = name == "logits" and old.ndim == 3 and new.shape[1] == 1
    if last:
        old = old[:, -1:]
    if mask is None or mask.all():
        return old, new
    rows = mask.astype(bool)
    if last:
        whole = rows.all(1)
        return old[whole], new[whole]
    if old.ndim == 4:  # a cache [B, K, T, D]
        return old.transpose(0, 2, 1, 3)[rows], new.transpose(0, 2, 1, 3)[rows]
    if old.ndim == 3 and old.shape[1] == rows.shape[1]:
        return old[rows], new[rows]
    return old, new


def by_onnxscript(path: Path) -> ir.Model:
    """The graph after `onnxscript.rewriter.ort_fusions.optimize_for_ort`."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.load(path)
    with silence():
        result = optimize_for_ort(model)
    return result[0] if isinstance(result, tuple) else model


def by_onnxruntime(path: Path) -> ir.Model:
    """The graph after `onnxruntime.transformers.optimizer`.

    The kind of model that leaves the fewest nodes; the graph as it came where every kind raises an
    error.
    """
    from onnxruntime.transformers import optimizer

    found: list[ir.Model] = []
    whole = str(path.resolve())
    for kind in FAMILIES:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as around:
            around.enter_context(contextlib.chdir(folder))  # it leaves a file where it runs
            around.enter_context(silence())
            around.enter_context(contextlib.suppress(Exception))
            done = optimizer.optimize_model(whole, model_type=kind, opt_level=0, **SIZES)
            found.append(ir.from_proto(done.model))
    return min(found, key=view.size) if found else ir.from_proto(onnx.load(path))


def source(path: Path) -> Verdict:
    """The graph as it came."""
    return verdict(ir.from_proto(onnx.load(path, load_external_data=False)))


@contextlib.contextmanager
def silence() -> Iterable[None]:  # type: ignore[misc]
    """No log lines."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(level)
