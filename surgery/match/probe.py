"""Find out what a region of a graph computes, by running it.

Exporters write the same data movement in dozens of ways. Instead of matching each of them node by
node, a pass extracts the region, runs it in onnxruntime on inputs that it chooses, and compares the
result with what it looks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from surgery.rewrite.matcher import LARGEST_CONSTANT
from surgery.rewrite.weights import numbers

SILENT = 4
"""Severity above which onnxruntime logs: what it cannot run is no fault here."""
WORK_LIMIT = 1 << 30
"""Bytes that all regions together may take at a time; a constant may be tiled to terabytes."""


class Leaks(Exception):
    """The region depends on values other than its stated inputs, or cannot be run."""


class Region:
    """The nodes between some inputs and one output, runnable.

    Args:
        graph: the graph they lie in.
        inputs: values to feed; constants inside the region come along.
        output: the value to compute.

    Raises:
        Leaks: the output depends on other values too.
    """

    def __init__(self, graph: ir.Graph, inputs: Sequence[ir.Value], output: ir.Value) -> None:
        try:
            part = ir.convenience.extract(graph, inputs=list(inputs), outputs=[output])
        except ValueError as e:
            raise Leaks(str(e)) from e
        self.names = [value.name or "" for value in inputs]
        for value in list(part.inputs):
            if not value.uses() and value is not part.outputs[0]:
                part.inputs.remove(value)
        read = {value.name for value in part.inputs}
        self.inputs = [value for value in inputs if value.name in read]
        """Those of the inputs that the region reads."""
        self.numbers = {
            v.name for v in part.inputs if any(use.node.op_type != "Shape" for use in v.uses())
        }
        """Names of the inputs whose numbers it reads, not their shapes alone."""
        made = (node.outputs[0] for node in part if node.op_type == "Constant")
        tensors = map(ir.convenience.get_const_tensor, (*part.initializers.values(), *made))
        self.constants = [
            int(x)
            for tensor in tensors
            if tensor is not None and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
            for x in np.ravel(numbers(tensor))
        ]
        """Every integer in the constants of the region."""
        self.session = session(part, graph.opset_imports)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run on arrays by input name; an input that the region does not read may be left out.

        Raises:
            Leaks: onnxruntime cannot run it, or not in `WORK_LIMIT` bytes.
        """
        wanted = {i.name for i in self.session.get_inputs()}
        (out,) = run(self.session, {k: v for k, v in feeds.items() if k in wanted})
        return out


def evaluate(graph: ir.Graph, values: Sequence[ir.Value]) -> list[np.ndarray]:
    """Compute values that depend on constants alone.

    Raises:
        Leaks: onnxruntime cannot, or not in `WORK_LIMIT` bytes.
    """
    part = ir.convenience.extract(graph, inputs=[], outputs=list(values))
    return run(session(part, graph.opset_imports), {})


def run(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a session.

    Raises:
        Leaks: onnxruntime cannot run it, or not in `WORK_LIMIT` bytes.
    """
    options = ort.RunOptions()
    options.log_severity_level = SILENT
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        return [np.asarray(array) for array in session.run(None, dict(feeds), options)]
    except Exception as e:  # onnxruntime's own kinds have no common base
        raise Leaks(f"not run: {str(e).partition(chr(10))[0]}") from e


def session(part: ir.Graph, opsets: Mapping[str, int]) -> ort.InferenceSession:
    """A session of a region, without optimization: it runs a few times on small arrays."""
    for node in part:
        node.metadata_props.clear()
    for value in part.initializers.values():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.Tensor):
            continue
        if tensor.size > LARGEST_CONSTANT:
            raise Leaks(f"{value.name}, {tensor.size} numbers: a weight")
        array = np.array(numbers(tensor))
        value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    part.opset_imports.update(opsets)
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.use_env_allocators", "1")
    bounded()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(ir.Model(part, ir_version=10))
    try:
        return ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # onnxruntime's own kinds have no common base
        raise Leaks(f"not loaded: {str(e).partition(chr(10))[0]}") from e


@cache
def bounded() -> None:
    """Let sessions that share an allocator, as those here do, share at most `WORK_LIMIT` bytes.

    What would not fit is refused before it is allocated. The allocator belongs to the process, so
    it is made once; one that the user of this library made before stays.
    """
    info = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    as_requested = 1
    with contextlib.suppress(RuntimeError):
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(WORK_LIMIT, as_requested, -1, -1))


def lookups(value: ir.Value) -> list[ir.Node]:
    """The `Gather` nodes from a two-dimensional table that `value` depends on, nearest first."""
    found: dict[ir.Node, None] = {}
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        node = current.producer()
        if current in seen or node is None:
            continue
        seen.add(current)
        if node.op_type == "Gather" and is_table(node.inputs[0]):
            found[node] = None
        else:
            stack.extend(v for v in node.inputs if v is not None)
    return list(found)


def is_table(value: ir.Value | None) -> bool:
    """Whether a value is a float initializer of two dimensions."""
    if value is None or not value.is_initializer() or value.shape is None:
        return False
    return len(value.shape) == 2 and value.dtype == ir.DataType.FLOAT
