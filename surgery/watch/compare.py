"""Two forms of a graph side by side: the same question, answers brought into one form, a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from surgery.watch.examples import Array, Example, spread

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
"""onnxruntime's names of input types."""

Outputs = dict[str, Array]


@dataclass(frozen=True)
class Difference:
    """How far two results lie apart.

    Attributes:
        output: name of the output.
        example: the call.
        absolute: largest difference of two numbers.
        relative: the same, in units of the largest number of the reference.
    """

    output: str
    example: str
    absolute: float
    relative: float


class Runner:
    """A graph in onnxruntime, as it is: nothing is fused or folded at load."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, graph: str, example: Example) -> Outputs:
        """The outputs in the form that all stages of a graph share."""
        feeds = {
            i.name: fitted(example.feeds[i.name], i.shape, i.type)
            for i in self.session.get_inputs()
        }
        names = [o.name for o in self.session.get_outputs()]
        return shared_form(graph, example, dict(zip(names, self.session.run(None, feeds))))


def fitted(array: Array, shape: list[object], type: str) -> Array:
    """An array in an input's dtype, cut to its columns: wide features have narrow ones in front."""
    columns = shape[-1] if shape else None
    if isinstance(columns, int) and columns < array.shape[-1]:
        array = array[..., :columns]
    return np.ascontiguousarray(array.astype(DTYPES[type]))


def shared_form(graph: str, example: Example, outputs: Outputs) -> Outputs:
    """Results as the finished graph gives them; floats as float32."""
    found = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in outputs.items()}
    if graph == "vision" and "deepstack_features" in found:
        levels = found.pop("deepstack_features")
        found["image_features"] = np.concatenate([found["image_features"], *levels], -1)
    if graph == "embedding" and "visual_pos_masks" in found:
        places, width = found.pop("visual_pos_masks"), found["inputs_embeds"].shape[-1]
        rows = example.feeds["image_features"][:, width:]
        levels = np.moveaxis(rows.reshape(len(rows), rows.shape[1] // width, width), 1, 0)
        found["per_layer_inputs"] = spread(levels, places)
    return found


def differences(example: Example, before: Outputs, after: Outputs) -> list[Difference]:
    """How far each output of `after` is from that of `before`, worst first.

    Only what means something is compared: valid positions, and the last one where `after` computes
    no other.
    """
    found = [
        difference(name, example, *meaningful(example, name, want, after[name]))
        if name in after
        else Difference(name, example.name, np.inf, np.inf)
        for name, want in before.items()
    ]
    return sorted(found, key=lambda d: -d.relative)


def meaningful(example: Example, name: str, want: Array, got: Array) -> tuple[Array, Array]:
    """The parts of two results to compare."""
    if example.valid is None:
        return want, got
    valid = example.valid.astype(bool)
    if name == "logits":
        positions = min(want.shape[1], got.shape[1])
        want, got = want[:, -positions:], got[:, -positions:]
        return want[valid[:, -positions:]], got[valid[:, -positions:]]
    if name.startswith("present."):
        return want.swapaxes(1, 2)[valid], got.swapaxes(1, 2)[valid]
    return want, got


def difference(name: str, example: Example, want: Array, got: Array) -> Difference:
    """How far two arrays lie apart; infinitely where their shapes or their non-numbers differ."""
    if want.shape != got.shape or not np.array_equal(finite(want), finite(got)):
        return Difference(name, example.name, np.inf, np.inf)
    usable = finite(want)
    a, b = want[usable].astype(np.float64), got[usable].astype(np.float64)
    absolute = float(np.abs(a - b).max(initial=0))
    scale = float(np.abs(a).max(initial=0))
    return Difference(name, example.name, absolute, absolute / scale if scale else absolute)


def finite(array: Array) -> Array:
    """Where an array holds numbers."""
    return np.isfinite(array)
