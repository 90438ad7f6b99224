"""Every node of a layer of the older families, as it ships."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from surgery.engine.loading import load
from surgery.rewrite.scope import scope
from surgery.verify.opened import Opened

LAYERS = Path(__file__).parent / "layers"


def graph(package: Path, part: str) -> ir.Graph:
    """A graph of a package."""
    return load(Opened(package).path(part)).graph


def layer(package: Path, part: str, path: str) -> str:
    """Modules and ops of a layer, a node a line."""
    nodes = [n for n in graph(package, part) if f"{scope(n)}.".startswith(f"{path}.")]
    lines = [f"{scope(n).removeprefix(path).lstrip('.') or '-'} {n.op_type}" for n in nodes]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen2"])
def test_decoder_layer(cases, name, precision):
    """Biases stay, no head is normalized, M-RoPE is one node for queries and one for keys."""
    found = layer(getattr(cases(name), precision), "decoder", "model.language_model.layers.1")
    assert found == (LAYERS / f"decoder_{precision}.txt").read_text()


@pytest.mark.parametrize(("name", "block"), [("qwen2_5", 3), ("qwen2_5", 4), ("qwen2", 1)])
def test_block(cases, name, block):
    """Blocks with windows and without are alike but for the segments that they read."""
    found = layer(cases(name).fp32, "vision", f"model.visual.blocks.{block}")
    assert found == (LAYERS / f"block_{name}.txt").read_text()


def test_sections_of_positions(cases):
    """M-RoPE takes the first frequencies from time, the next from rows, the last from columns."""
    nodes = graph(cases("qwen2_5").fp32, "decoder")
    found = {
        (*n.attributes["mrope_section"].as_ints(), n.attributes["mrope_layout"].as_int())
        for n in nodes
        if n.op_type == "MRotaryEmbedding"
    }
    assert found == {(2, 3, 3, 0)}


def test_sliding_window(cases):
    """The last layers look back a few tokens only."""
    nodes = graph(cases("qwen2_5 windows").fp32, "decoder")
    found = [
        n.attributes.get_int("local_window_size", -1)
        for n in nodes
        if n.op_type == "GroupQueryAttention"
    ]
    assert found == [-1, -1, 8, 8]
