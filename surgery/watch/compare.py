"""Compare two versions of a graph: run both on the same inputs and measure the difference.

Passes change inputs and outputs of a graph, so the outputs are first converted to one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from surgery.watch.examples import Array, Example, spread

ORT_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
"""NumPy dtypes by the names that onnxruntime has for the types of inputs."""

Outputs = dict[str, Array]


@dataclass(frozen=True)
class Difference:
    """The difference between two versions of an output.

    Attributes:
        output: name of the output.
        example: name of the example.
        absolute: largest absolute difference.
        relative: `absolute` divided by the largest absolute value of the reference.
    """

    output: str
    example: str
    absolute: float
    relative: float


class Runner:
    """A graph loaded in onnxruntime with all graph optimizations off."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, graph: str, example: Example) -> Outputs:
        """Run an example and return the outputs in the form that all versions of a graph share."""
        feeds = {
            i.name: fitted(example.feeds[i.name], i.shape, i.type)
            for i in self.session.get_inputs()
        }
        names = [o.name for o in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, feeds)))
        if graph == "embedding" and "image_features" not in feeds:
            found = placed(example, found)
        return shared_form(graph, example, found)


def fitted(array: Array, shape: list[object], type: str) -> Array:
    """Return an array with the dtype and the number of columns of an input.

    Examples hold image features and embeddings with DeepStack features behind them. A graph that
    takes only image features or embeddings gets the first columns.
    """
    columns = shape[-1] if shape else None
    if isinstance(columns, int) and columns < array.shape[-1]:
        array = array[..., :columns]
    return np.ascontiguousarray(array.astype(ORT_DTYPES[type]))


def placed(example: Example, outputs: Outputs) -> Outputs:
    """Put features over the placeholders of an embedding graph that leaves this to its caller."""
    rows = outputs["inputs_embeds"].copy()
    rows[example.feeds["visual_pos_masks"].astype(bool)] = example.feeds["image_features"]
    return {"inputs_embeds": rows}


def shared_form(graph: str, example: Example, outputs: Outputs) -> Outputs:
    """Convert outputs to one form, with floats as float32 and DeepStack features behind others."""
    found = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in outputs.items()}
    if graph == "vision" and "deepstack_features" in found:
        levels = found.pop("deepstack_features")
        found["image_features"] = np.concatenate([found["image_features"], *levels], -1)
    if graph == "embedding" and "visual_pos_masks" in found:
        places, width = found.pop("visual_pos_masks"), found["inputs_embeds"].shape[-1]
        rows = example.feeds["image_features"][:, width:]
        levels = np.moveaxis(rows.reshape(len(rows), rows.shape[1] // width, width), 1, 0)
        found["per_layer_inputs"] = spread(levels, places)
    if graph == "embedding" and "per_layer_inputs" in found:
        parts = found["inputs_embeds"], found.pop("per_layer_inputs")
        found["inputs_embeds"] = np.concatenate(parts, -1)
    return found


def differences(example: Example, before: Outputs, after: Outputs) -> list[Difference]:
    """Return the difference of each output of `after` from that of `before`, largest first.

    Only positions that the attention mask marks as valid are compared. If `after` computes logits
    for the last position only, the comparison uses that position.
    """
    found = [
        difference(name, example, *meaningful(example, name, want, after[name]))
        if name in after
        else Difference(name, example.name, np.inf, np.inf)
        for name, want in before.items()
    ]
    return sorted(found, key=lambda d: -d.relative)


def meaningful(example: Example, name: str, want: Array, got: Array) -> tuple[Array, Array]:
    """Return the parts of two outputs that are to be compared."""
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
    """Return the difference of two arrays, infinite if shapes or places of NaN differ."""
    if want.shape != got.shape or not np.array_equal(finite(want), finite(got)):
        return Difference(name, example.name, np.inf, np.inf)
    usable = finite(want)
    a, b = want[usable].astype(np.float64), got[usable].astype(np.float64)
    absolute = float(np.abs(a - b).max(initial=0))
    scale = float(np.abs(a).max(initial=0))
    return Difference(name, example.name, absolute, absolute / scale if scale else absolute)


def finite(array: Array) -> Array:
    """Return where an array is neither NaN nor infinite."""
    return np.isfinite(array)
