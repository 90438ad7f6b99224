"""No position lies beyond the number of tokens so far."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder, names
from surgery.rewrite.contract import Pass, Site

POSITIONS, MASK = "position_ids", "attention_mask"


class PositionLimit(Pass):
    """A position that is too large becomes that of the last token.

    before  position_ids [3, B, S]
    after   Min(position_ids, ReduceSum(attention_mask [B, T]) - 1 [B, 1])
    keeps   every position that transformers computes: a text token's is at most the number of
            tokens before it, and a picture of h * w tokens moves what follows on by max(h, w)
    not     a graph without both inputs
    why     transformers.js 4.3.1 adds the length of a prompt without pictures to the positions of
            its answer where it should subtract it (models/qwen2_vl/modeling_qwen2_vl.js:44): the
            first new token after 7 stood at 21. With one new token the limit is its position
    """

    name = "position_limit"

    def sites(self, model: ir.Model) -> list[Site]:
        """The input `position_ids`, if anything but a limit reads it."""
        inputs = {value.name: value for value in model.graph.inputs}
        positions, mask = inputs.get(POSITIONS), inputs.get(MASK)
        if positions is None or mask is None or positions.shape is None or mask.shape is None:
            return []
        if (len(positions.shape), len(mask.shape)) != (3, 2):
            return []
        read = any(use.node.op_type != "Min" for use in positions.uses())
        return [Site(POSITIONS, "input")] if read else []

    def apply(self, model: ir.Model) -> int:
        """Put the limit between the input and its readers."""
        if not self.sites(model):
            return 0
        graph = model.graph
        positions, mask = (next(v for v in graph.inputs if v.name == n) for n in (POSITIONS, MASK))
        readers = [use for use in positions.uses() if use.node.op_type != "Min"]
        read = {use.node for use in readers}
        add = Builder(self.name, next(node for node in graph if node in read), names(model))
        assert positions.shape is not None and mask.shape is not None
        assert mask.dtype is not None
        column = (mask.shape[0], 1)
        axis = add.constant(np.array([1], np.int64), "axis_1")
        one = add.constant(np.array(1, mask.dtype.numpy()), "one_token")
        count = add("ReduceSum", [mask, axis], {"keepdims": 1}, dtype=mask.dtype, shape=column)
        last = add("Sub", [count, one], dtype=mask.dtype, shape=column)
        limited = add("Min", [positions, last], like=positions)
        for use in readers:
            use.node.replace_input_with(use.idx, limited)
        return 1
