"""How a head that chooses tokens for another one is known in a graph: see the pass `shortlist`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

TOKENS = "shortlist_tokens"
"""The initializer with the number of tokens that are chosen."""
DRAFT = ".draft"
"""End of the name of the weight that chooses them."""


def choose_all(model: ir.Model) -> None:
    """Let every token of the vocabulary be chosen: logits are then all those of the head itself.

    Its rows are unpacked together, 4 bytes a weight.
    """
    count = model.graph.initializers.get(TOKENS)
    if count is None:
        return
    for node, _ in count.uses():
        draft = node.inputs[0]
        assert draft is not None and draft.shape is not None
        size = draft.shape[-1]
        assert isinstance(size, int)
        count.const_value = ir.tensor(np.array([size], np.int64), name=TOKENS)
        for value in node.outputs:
            shapeless(value)


def shapeless(value: ir.Value) -> None:
    """Forget the shapes of a value and of those computed from it, up to the logits."""
    value.shape = None
    for node in value.consumers():
        if node.op_type != "ScatterElements":
            for out in node.outputs:
                shapeless(out)
