"""Constant folding and removal of duplicates, with the passes of onnxscript and onnx-ir."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from surgery.match.probe import Leaks, evaluate
from surgery.rewrite.builder import initializer
from surgery.rewrite.contract import Pass, PassError, Site
from surgery.rewrite.matcher import constant
from surgery.rewrite.scope import place
from surgery.rewrite.weights import RowTensor

INPUT_LIMIT = 1 << 12
"""Most elements of a constant that onnxscript's folder reads."""
OUTPUT_LIMIT = 1 << 16
"""Most elements of a constant that onnxscript's folder makes."""
RESULT_LIMIT = 1 << 22
"""Most bytes of a constant that `Precompute` makes."""
FAULTS = 32
"""Attempts of `Precompute` that may fail in one round."""
SELECTING = ("Compress", "NonZero", "NonMaxSuppression", "Unique")
"""Ops whose result has a size that depends on numbers, and is not much larger than the input."""
ROUNDS = 8
"""Most rounds of the passes."""
SMALL = 16
"""Elements up to which equal constants are merged."""


UNFOLDED = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Dropout",
    "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SplitToSequence", "StringSplit",
))  # fmt: skip
"""Ops that give other numbers at each run, or no tensor."""


class Fold(Pass):
    """Constants are computed once, duplicate computations merged, dead nodes removed.

    before  shape arithmetic on constants and on lengths that are known, `Constant` nodes,
            `Identity`, the same node twice
    after   initializers, one node each
    keeps   weights of the checkpoint: none is read, renamed or merged with an equal one
    not     results over 4 MB, and nodes that depend on them
    why     a trace writes every Python number as a node, which hides the patterns to be matched
    """

    name = "fold"
    settled = False
    """Whether the last round of the last call found nothing to do."""

    def sites(self, model: ir.Model) -> list[Site]:
        """Nodes that the pass would remove, found on a copy that shares the weights."""
        copy = model.clone()
        tidy(copy)
        kept = {node.name for graph in copy.graphs() for node in graph}
        gone = (node for graph in model.graphs() for node in graph if node.name not in kept)
        return [Site(place(node), node.op_type) for node in gone]

    def apply(self, model: ir.Model) -> int:
        """Fold until nothing changes; returns the number of nodes removed."""
        before = sum(len(graph) for graph in model.graphs())
        self.settled = tidy(model)
        return before - sum(len(graph) for graph in model.graphs())

    def left(self, model: ir.Model) -> list[Site]:
        """Nothing, if the last round changed nothing; to search once more would take as long."""
        return [] if self.settled else self.sites(model)


FOLDER = logging.getLogger("onnxscript.optimizer._constant_folding")


def tidy(model: ir.Model) -> bool:
    """Run the passes; unfoldable nodes are left alone, so the folder's warnings are muted.

    Returns:
        Whether the last round changed nothing.
    """
    level = FOLDER.level
    FOLDER.setLevel(logging.ERROR)
    try:
        return run(model)
    except ir.passes.PassError as e:  # names objects of Python, its cause says what is wrong
        cause = str(e.__cause__ or e).partition("\n")[0]
        raise PassError(f"fold: the graph cannot be evaluated: {cause}.") from e
    finally:
        FOLDER.setLevel(level)


def run(model: ir.Model) -> bool:
    """Run the passes in turn until nothing changes, `ROUNDS` times at most; whether that was so."""
    passes = ir.passes.Sequential(
        FoldConstantsPass(
            shape_inference=True,
            input_size_limit=INPUT_LIMIT,
            output_size_limit=OUTPUT_LIMIT,
            should_fold=spare_weights,
        ),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        Lengths(),
        Precompute(),
        MergeConstants(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    return any(not passes(model).modified for _ in range(ROUNDS))


class Lengths(ir.passes.InPlacePass):
    """Replaces reads of known lengths, also of shapes that are known only in part."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every `Gather(Shape(x), i)` of a fixed length."""
        modified = False
        for graph in model.graphs():
            for node in list(graph):
                array = length(node)
                value = node.outputs[0]
                if array is None or value.is_graph_output() or not value.uses():
                    continue
                name = value.name or ""
                value.name = f"{name}.computed"
                made = initializer(graph, name, ir.tensor(array, name=name))
                value.replace_all_uses_with(made)
                modified = True
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def length(node: ir.Node) -> np.ndarray | None:
    """The result of `Gather(Shape(x), i)` if those lengths are known."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    made = node.inputs[0].producer() if node.inputs[0] is not None else None
    at = constant(node.inputs[1])
    if made is None or made.op_type != "Shape" or made.inputs[0] is None or at is None:
        return None
    shape = made.inputs[0].shape
    start, end = made.attributes.get_int("start", 0), made.attributes.get_int("end", 1 << 31)
    if shape is None:
        return None
    dims = shape[start:end]
    if not all(-len(dims) <= int(i) < len(dims) for i in at.ravel()):
        return None
    found = [dims[int(i)] for i in at.ravel()]
    if not all(isinstance(d, int) for d in found):
        return None
    return np.array(found, np.int64).reshape(at.shape)


class Precompute(ir.passes.InPlacePass):
    """Computes regions that read constants alone, by running them in onnxruntime.

    onnxscript's folder skips ops that its reference evaluator lacks (CumSum, some Range); with a
    fixed picture size they are most of what the vision graph computes before its first layer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every computed constant that another region reads."""
        graph = model.graph
        fixed: set[ir.Value] = set()
        for node in graph:
            known = all(v in fixed or constant(v) is not None for v in node.inputs if v)
            plain = not any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
            plain = plain and node.op_type not in UNFOLDED
            if known and plain and not node.domain and any(node.inputs):
                fixed.update(node.outputs)
        edge = [
            v
            for v in fixed
            if not v.is_graph_output() and any(u.node.outputs[0] not in fixed for u in v.uses())
        ]
        edge.sort(key=lambda v: v.name or "")
        arrays = computed(graph, edge)
        for value, array in arrays.items():
            name = value.name or ""
            value.name = f"{name}.computed"
            made = initializer(graph, name, ir.tensor(array, name=name))
            value.replace_all_uses_with(made)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(arrays))


def computed(graph: ir.Graph, values: list[ir.Value]) -> dict[ir.Value, np.ndarray]:
    """Those of some constants that can be computed and are not larger than `RESULT_LIMIT`.

    They are computed together. Where that fails, in halves, until `FAULTS` attempts have failed.
    """
    found: dict[ir.Value, np.ndarray] = {}
    waiting, faults = [values], 0
    while waiting and faults < FAULTS:
        part = waiting.pop()
        if not part:
            continue
        try:
            arrays = evaluate(graph, part)
        except Leaks:
            faults += 1
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]] if middle else []
            continue
        found.update(
            (value, array)
            for value, array in zip(part, arrays, strict=True)
            if array.nbytes <= RESULT_LIMIT
        )
    return found


class MergeConstants(ir.passes.InPlacePass):
    """Merges equal small constants; weights of the checkpoint are never merged."""

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
    """Whether onnxscript's folder may compute a node: None leaves it to its limits.

    False for a node that reads a weight, that must run each time, or whose result is too large or
    of a size that is not known before: the folder would look at its limit afterwards.
    """
    if node.op_type in UNFOLDED:
        return False
    shapes = [value.shape for value in node.outputs]
    known = all(shape is not None and shape.is_static() for shape in shapes)
    if not known and node.op_type not in SELECTING:
        return False
    if known and sum(math.prod(shape.numpy()) for shape in shapes if shape) > OUTPUT_LIMIT:
        return False
    tensors = [v.const_value for v in node.inputs if v is not None]
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        return False
    shifted = any(tensor is not None and tensor.size == 1 for tensor in tensors)
    if node.op_type == "Transpose" or (node.op_type == "Add" and shifted):
        # onnxscript folds every Transpose, however large; what it makes is no weight any more
        return False if any(isinstance(tensor, RowTensor) for tensor in tensors) else None
    return None
