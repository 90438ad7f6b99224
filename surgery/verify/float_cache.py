"""A package with an 8-bit cache as it would be with a float one: what is left is exact.

Rounding keys and values moves logits by some percent, which could hide a fault of that size. The
same graphs with a cache in float32 are held to what any other package is held to.
"""

from __future__ import annotations

import onnx

SCALES = 12
"""Inputs of GroupQueryAttention from here on are the scales of a cache."""
ATTRIBUTES = "k_quant_type", "v_quant_type", "kv_cache_bit_width"


def with_float_cache(graph: onnx.GraphProto) -> None:
    """Take the scales of the cache away, and make it float32."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[SCALES:]
            kept = [one for one in node.attribute if one.name not in ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                with_float_cache(attribute.g)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.INT8:
            kind.elem_type = onnx.TensorProto.FLOAT
