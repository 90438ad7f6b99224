"""Times of graphs beside each other."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
from times import ratios

FEEDS = {"x": np.ones((128, 128), np.float32)}


def products(count: int) -> ir.Model:
    """A matrix multiplied by itself, over and over."""
    names = ["x", *(f"v{i}" for i in range(count))]
    body = "".join(f"{b} = MatMul({a}, x)\n" for a, b in itertools.pairwise(names))
    text = '<ir_version: 10, opset_import: ["": 20]>\n'
    return ir.from_onnx_text(
        f"{text} g (float[128,128] x) => (float[128,128] {names[-1]}) {{{body}}}"
    )


def test_slower_graphs_have_small_ratios() -> None:
    one, forty = ratios([products(4), products(4), products(160)], FEEDS, rounds=3)
    assert one is not None and forty is not None
    assert 0.25 < one < 4 and forty < 0.25


def test_a_graph_that_does_not_run_has_none() -> None:
    unknown = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 20, "elsewhere": 1]>\n'
        "g (float[128,128] x) => (float[128,128] y) { y = elsewhere.Unknown(x) }"
    )
    ratio, none = ratios([products(4), products(2), unknown], FEEDS, rounds=1)
    assert ratio is not None and none is None
