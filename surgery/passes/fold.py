"""Constant folding and tidying with the stock passes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from surgery.contract import Pass, Site, constant
from surgery.scope import place

INPUT_LIMIT = 1 << 12
"""Bytes of a constant that folding reads."""
OUTPUT_LIMIT = 1 << 16
"""Bytes of a constant that folding makes."""
SMALL = 16
"""Elements up to which equal constants are merged."""


class Fold(Pass):
    """Constants computed once, copies of a computation merged, dead nodes gone.

    before  shape arithmetic on constants, `Constant` nodes, `Identity`, the same node twice
    after   initializers, one node each
    keeps   weights of the checkpoint: none is read, renamed or merged with an equal one
    not     constants over 4 KiB, or results over 64 KiB
    why     a trace writes every Python number as a node; matching starts from what is left
    """

    name = "fold"

    def sites(self, model: ir.Model) -> list[Site]:
        """Nodes that would go, found on a copy that shares the weights."""
        copy = model.clone()
        tidy(copy)
        kept = {node.name for graph in copy.graphs() for node in graph}
        gone = (node for graph in model.graphs() for node in graph if node.name not in kept)
        return [Site(place(node), node.op_type) for node in gone]

    def apply(self, model: ir.Model) -> int:
        """Fold until nothing folds."""
        before = sum(len(graph) for graph in model.graphs())
        tidy(model)
        return before - sum(len(graph) for graph in model.graphs())


def tidy(model: ir.Model) -> None:
    """Run the stock passes to their fixed point."""
    passes = ir.passes.PassManager(
        [
            FoldConstantsPass(
                shape_inference=True,
                input_size_limit=INPUT_LIMIT,
                output_size_limit=OUTPUT_LIMIT,
                should_fold=spare_weights,
            ),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            MergeConstants(),
            common.IdentityEliminationPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ],
        steps=8,
        early_stop=True,
    )
    passes(model)


class MergeConstants(ir.passes.InPlacePass):
    """One initializer for each small constant; weights of the checkpoint stay apart."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let all readers of equal constants read the first."""
        first: dict[tuple[object, ...], ir.Value] = {}
        merged = False
        for value in list(model.graph.initializers.values()):
            numbers = constant(value)
            if numbers is None or numbers.size > SMALL or value.is_graph_output():
                continue
            key = (numbers.dtype, numbers.shape, numbers.tobytes())
            kept = first.setdefault(key, value)
            if kept is not value and value.uses():
                value.replace_all_uses_with(kept)
                merged = True
        return ir.passes.PassResult(model, modified=merged)


def spare_weights(node: ir.Node) -> bool | None:
    """False for a node that reads a weight of the checkpoint; None leaves it to the limits."""
    if any(v is not None and isinstance(v.const_value, ir.ExternalTensor) for v in node.inputs):
        return False
    return None
