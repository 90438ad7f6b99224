"""A small graph as an exporter writes it, in a file of its own: one norm, one gated MLP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import weighted_graph

TEXT = """<ir_version: 10, opset_import: ["": 23]>
layer (float[batch,sequence,64] x, float[64] w_norm, float[64,96] w_gate, float[64,96] w_up,
       float[96,64] w_down) => (float[batch,sequence,64] y)
<float two = {2}, float eps = {0.000001}> {
  squares = Pow(x, two)
  axes = Constant<value = int64[1] {-1}>()
  mean = ReduceMean(squares, axes)
  shifted = Add(mean, eps)
  root = Sqrt(shifted)
  scale = Reciprocal(root)
  normed = Mul(x, scale)
  h = Mul(w_norm, normed)
  gate = MatMul(h, w_gate)
  up = MatMul(h, w_up)
  bent = Sigmoid(gate)
  act = Mul(gate, bent)
  both = Mul(act, up)
  down = MatMul(both, w_down)
  y = Add(x, down)
}"""


def write(path: Path, external: bool = False, text: tuple[str, str] = ("", "")) -> Path:
    """Write the graph; its weights go into the same file, or into one beside it.

    Args:
        path: the file.
        external: weights beside it.
        text: a part of `TEXT`, and what takes its place.
    """
    return weighted_graph.write(TEXT.replace(*text) if text[0] else TEXT, path, external)


def feeds(batch: int = 2, sequence: int = 5) -> dict[str, np.ndarray]:
    """Random inputs."""
    rng = np.random.default_rng(11)
    return {"x": rng.standard_normal((batch, sequence, 64)).astype(np.float32)}
