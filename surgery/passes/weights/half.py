"""Matrix products and attention in float16, norms and rotary in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.float16 import F32, Float16Converter
from surgery.rewrite.scope import place
from surgery.rewrite.subgraphs import branches, captured

COMPUTE = frozenset(
    {
        *("MatMul", "Gemm", "MatMulNBits", "GroupQueryAttention", "MultiHeadAttention"),
        *("Gelu", "QuickGelu", "MoE", "QMoE", "If"),
    }
)
"""Ops that compute in float16: products, attention (in the branches of `If` too), activations."""

FOLLOW = frozenset({"Mul", "Reshape", "Split", "Slice", "Transpose"})
"""Ops that are converted too where all their float inputs are float16."""


class Half(Pass):
    """Products compute in float16, the residual stream stays float32.

    before  every activation float32
    after   products, attention and activations float16 ; norms, rotary and residual float32
    keeps   dtypes of graph inputs and outputs, except the cache, which becomes float16
    not     ops for which the provider has no float16 kernel; the product that chooses experts
    why     half the bytes of weights and cache, and faster products; sums of squares and angles
            need float32
    upstream huggingface/transformers#33294
    """

    name = "half"

    def __init__(
        self, runs: Callable[[str], bool] = lambda op: True, *, expect: int | None = None
    ) -> None:
        """Choose the ops.

        Args:
            runs: whether the provider has a float16 kernel for an op of `COMPUTE`.
        """
        super().__init__(expect=expect)
        self.runs = runs

    def pending(self, model: ir.Model) -> Iterator[ir.Node]:
        """Nodes that compute in float32 and are to be converted."""
        for node in model.graph:
            wanted = node.op_type in COMPUTE and self.supported(node) and not chooses(node)
            if wanted and touches(node, F32):
                yield node

    def supported(self, node: ir.Node) -> bool:
        """Whether the provider computes a node in float16, its branches included."""
        inner = [n.op_type for graph in branches(node) for n in graph if n.op_type in COMPUTE]
        return all(self.runs(op) for op in inner or [node.op_type])

    def sites(self, model: ir.Model) -> list[Site]:
        """Nodes to convert."""
        return [Site(place(node), node.op_type) for node in self.pending(model)]

    def apply(self, model: ir.Model) -> int:
        """Convert nodes in order, with casts between them and nodes that stay float32."""
        found = list(self.pending(model))
        convert = Float16Converter(model, self.name)
        chosen = set(found)
        for node in list(model.graph):
            follows = node.op_type in FOLLOW and convert.all_half(node)
            if node in chosen or follows:
                convert.node(node)
        convert.finish()
        return len(found)


def touches(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether a node makes values of a dtype, or its subgraphs read some."""
    values = [*node.outputs, *(v for graph in branches(node) for v in captured(graph))]
    return any(v.dtype == dtype for v in values) and bool(node.outputs)


def chooses(node: ir.Node) -> bool:
    """Whether a product chooses experts: in float16, near ties would be decided otherwise."""
    uses = [use for value in node.outputs for use in value.uses()]
    for use in uses:
        reader, following = use.node, use.node.successors()
        if reader.op_type == "Softmax" and any(n.op_type == "TopK" for n in following):
            return True
        if reader.op_type == "Cast":
            uses.extend(use for value in reader.outputs for use in value.uses())
        if reader.op_type in ("MoE", "QMoE") and use.idx == 1:
            return True
    return False
