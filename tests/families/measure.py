"""What the generic recipes do to a family's graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from export import Export

from surgery.engine import runner
from surgery.engine.loading import load_any
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.rewrite import view
from surgery.rewrite.contract import NodePass, Pass
from surgery.rewrite.matcher import Miss

OPTIONS = Options(text_precision="fp32", max_length=64)
EVERYWHERE = (
    *("dims", "fold", "noop", "static_reshape", "reshape_chain", "weight_cast", "weight_transpose"),
    *("shapes", "lengths", "attention_heads", "rotary_rows", "plain_linear"),
    "row_guard",
    "right_weight",
    *("attention_bias", "bias_gelu", "skip_bias"),
)
"""Passes that tidy any graph: how often they act says nothing about a family."""


@dataclass
class Result:
    """A graph's way through its recipe.

    Attributes:
        expected: sites that the architecture has, by pass.
        fired: sites that were found, by pass.
        reasons: the nearest miss of a pass that found fewer than expected.
        before: nodes, constants not counted.
        after: nodes afterwards.
        error: the largest difference to PyTorch relative to the largest number.
    """

    expected: dict[str, int]
    fired: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    before: int = 0
    after: int = 0
    error: float = 0.0
    error_8bit: float = 0.0


def measure(family: Any, export: Export) -> Result:
    """Run the recipe, then both graphs' numbers against PyTorch's."""
    result = Result(family.sites)
    model = operate(family, export, OPTIONS, result)
    result.after = view.size(model)
    result.error = error(model, export)
    if "matmul_nbits" in result.expected:
        bits = replace(OPTIONS, text_precision="int4", head_bits=8)
        result.error_8bit = error(operate(family, export, bits, result, Eight), export)
    return result


class Eight(Settings):
    """Every weight in 8 bits."""

    def is_head(self, name: str) -> bool:
        return True


def operate(
    family: Any,
    export: Export,
    options: Options,
    result: Result,
    settings: type[Settings] = Settings,
) -> ir.Model:
    """Apply the recipe; sites go to `result`, and reasons where there are too few."""
    model = load_any(export.path, weight=family.weight)
    result.before = view.size(model)
    known = settings(options=options)
    sites: dict[str, int] = {}
    for record in runner.run(family.name, model, GENERIC[family.recipe], known):
        if record.name in EVERYWHERE:
            continue
        sites[record.name] = sites.get(record.name, 0) + record.sites
        missing = sites[record.name] < result.expected.get(record.name, 0)
        if missing or record.name in family.refused:
            result.reasons[record.name] = reason(record.step.make(known), model)
        else:
            result.reasons.pop(record.name, None)
    result.fired = sites
    return model


def reason(work: Pass, model: ir.Model) -> str:
    """The nearest miss; the first of those that no condition held for, where there is no other."""
    misses = work.near_misses(model)
    if not misses and isinstance(work, NodePass):
        misses = [found for _, found in work.scan(model) if isinstance(found, Miss)]
    return str(misses[0]) if misses else "no anchor"


def error(model: ir.Model, export: Export) -> float:
    """Largest difference over all cases and outputs; logits of the last position alone."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            array = np.array(tensor.numpy())
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(copy).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {i.name: i.type for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    worst = 0.0
    for given, wanted in export.cases:
        got = session.run(None, {k: fit(v, inputs[k]) for k, v in given.items() if k in inputs})
        for name, array in zip(names, got, strict=True):
            want = wanted[name][:, -1:] if name == "logits" else wanted[name]
            assert array.shape == want.shape, (name, array.shape, want.shape)
            worst = max(worst, float(np.abs(array - want).max() / np.abs(want).max()))
    return worst


def fit(array: np.ndarray, type: str) -> np.ndarray:
    """An array as a graph takes it: the cache is float16 where attention is."""
    return array.astype(np.float16) if type == "tensor(float16)" else array
