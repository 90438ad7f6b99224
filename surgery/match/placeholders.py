"""Features that an exporter scatters to the placeholder tokens of a sequence of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Scatter:
    """Features scattered into a sequence of embeddings.

    Attributes:
        embeds: `[B, S, H]`.
        mask: `[B, S]`, true at placeholders.
        features: `[M, H]`, a graph input.
    """

    embeds: ir.Value
    mask: ir.Value
    features: ir.Value


def scattered(node: ir.Node, m: Matcher) -> Scatter:
    """The embeddings, the mask behind the indices and the features behind the updates.

    Args:
        node: a `ScatterND`.
        m: counts the conditions.

    Raises:
        Miss: a condition failed.
    """
    embeds, indices, updates = node.inputs
    assert embeds is not None
    places = m.producer(m.producer(indices, "Transpose").inputs[0], "NonZero").inputs[0]
    while (spread := m.producer(places, "Expand", "Unsqueeze")).op_type == "Expand":
        places = spread.inputs[0]
    mask = spread.inputs[0]
    assert mask is not None
    m.rank(mask, 2)
    reduction = node.attributes.get_string("reduction", "none")
    m.check(reduction == "none", "rows put in place", reduction)
    flat = m.producer(m.producer(updates, "Slice").inputs[0], "Reshape")
    features = flat.inputs[0]
    assert features is not None
    m.check(features.is_graph_input(), "features that are a graph input", features.name)
    return Scatter(embeds, mask, features)
