"""Shorten a large graph for `--check-steps` to its first two layers, its last, and fewer logits.

A removed layer is replaced by its own input. The nodes before, between and after the layers stay,
so the graph still has every kind of site that a pass looks for.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from surgery.rewrite.builder import prune
from surgery.rewrite.copies import copied
from surgery.rewrite.scope import scope
from surgery.watch.provenance import bytes_by_dtype

LIMIT = 1 << 28
"""Graphs with at most this many bytes of weights are not shortened."""
FIRST = 2
"""Number of layers kept at the front. The last layer is kept too."""
ROWS = 2048
"""Number of logits kept."""

LAYER = re.compile(r"(?P<stack>.+\.(?:layers|blocks))\.(?P<index>\d+)\.(?:input_layernorm|norm1)")
CACHE = re.compile(r"present\.(\d+)\.\w+")


def shortened(model: ir.Model, limit: int = LIMIT) -> tuple[ir.Model, str]:
    """Return a shortened copy of a raw graph, and a description of what it keeps.

    Args:
        model: the raw graph, which is not changed.
        limit: largest size of the weights in bytes for which the copy is whole and the description
            empty.
    """
    copy = copied(model)
    if sum(bytes_by_dtype(model).values()) <= limit:
        return copy, ""
    inputs = layer_inputs(copy)
    last = len(inputs) - 1
    words = []
    if last > FIRST:
        drop_layers(copy, inputs, range(FIRST, last))
        words.append(f"layers {', '.join(map(str, [*range(FIRST), last]))} of {last + 1}")
    if cut_logits(copy, ROWS):
        words.append(f"{ROWS} logits")
    prune(copy)
    copy.graph.inputs[:] = [v for v in copy.graph.inputs if v.uses() or not is_cache(v)]
    return copy, " and ".join(words)


def layer_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the input of each layer: the value that its first norm reads from outside."""
    found: dict[int, ir.Value] = {}
    for node in model.graph:
        match = LAYER.fullmatch(scope(node))
        if match is None or int(match["index"]) in found:
            continue
        inside = f"{match['stack']}.{match['index']}."
        for value in node.inputs:
            made = value.producer() if value is not None else None
            outside = made is not None and not scope(made).startswith(inside)
            if value is not None and (outside or value.is_graph_input()) and activation(value):
                found[int(match["index"])] = value
    return [found[i] for i in sorted(found)]


def activation(value: ir.Value) -> bool:
    """Return whether a value is floating-point and has a dynamic dimension."""
    floats = value.dtype is not None and value.dtype.is_floating_point()
    return floats and value.shape is not None and any(not isinstance(d, int) for d in value.shape)


def drop_layers(model: ir.Model, inputs: list[ir.Value], dropped: range) -> None:
    """Replace the output of each dropped layer by the input of the first of them."""
    kept = inputs[dropped.start]
    for i in dropped:
        inputs[i + 1].replace_all_uses_with(kept)
    gone = {str(i) for i in dropped}
    model.graph.outputs[:] = [
        value
        for value in model.graph.outputs
        if not ((match := CACHE.fullmatch(value.name or "")) and match[1] in gone)
    ]


def cut_logits(model: ir.Model, rows: int) -> bool:
    """Keep the first rows of a head stored as in the checkpoint; return whether one was cut."""
    logits = next((v for v in model.graph.outputs if v.name == "logits"), None)
    if logits is None or logits.shape is None or not isinstance(logits.shape[-1], int):
        return False
    size = logits.shape[-1]
    cut = False
    for weight in model.graph.initializers.values():
        tensor = weight.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.shape[0] == size > rows:
            shape = ir.Shape([rows, *list(tensor.shape)[1:]])
            row = tensor.nbytes // size
            weight.const_value = ir.ExternalTensor(
                tensor.location, tensor.offset, rows * row, tensor.dtype,
                shape=shape, name=tensor.name, base_dir=tensor.base_dir,
            )  # fmt: skip
            weight.shape, cut = shape, True
    for value in (v for node in model.graph for v in node.outputs if cut):
        if value.shape is not None and size in list(value.shape):
            value.shape = ir.Shape([rows if d == size else d for d in value.shape])
    return cut


def is_cache(value: ir.Value) -> bool:
    """Return whether a graph input belongs to the key/value cache."""
    return (value.name or "").startswith("past_key_values.")
