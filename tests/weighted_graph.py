"""Graphs from ONNX text in files, their weights random numbers, as an exporter writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx


def write(text: str, path: Path, external: bool = False) -> Path:
    """Write a graph; its inputs whose names start with `w_` become weights.

    Args:
        text: the graph.
        path: the file.
        external: weights go into a file beside it, not into the same.
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    for value in [v for v in model.graph.input if v.name.startswith("w_")]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = (0.2 * rng.standard_normal(shape) + 0.1).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.weights",
                  size_threshold=0)  # fmt: skip
    else:
        onnx.save(model, path)
    return path
