"""Constants that would fold to gigabytes: refused before they are computed, and left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxscript.optimizer import _constant_folding

from surgery.match import probe
from surgery.passes import Fold
from surgery.passes.tidy import fold

F32 = ir.DataType.FLOAT
HUGE = 1 << 31
ONE = np.ones(1, np.float32)
COLUMN = np.ones((1 << 12, 1), np.float32)

GROWING = {
    "Tile": (ONE, np.array([HUGE])),
    "Expand": (ONE, np.array([HUGE])),
    "ConstantOfShape": (np.array([1 << 16, 1 << 15]),),
    "Range": (np.array(0.0, np.float32), np.array(2.0**31, np.float32), np.array(1, np.float32)),
    "Pad": (ONE, np.array([0, HUGE])),
    "Resize": (np.ones((1, 1, 1), np.float32), None, None, np.array([1, 1, HUGE])),
    "OneHot": (np.zeros(1 << 12, np.int64), np.array(1 << 19), np.array([0, 1], np.float32)),
    "Add": (COLUMN, np.ones((1 << 7, 1, 1 << 12), np.float32)),
    "Where": (COLUMN > 0, COLUMN.T, np.ones((1 << 7, 1, 1), np.float32)),
    "HannWindow": (np.array(HUGE),),
    "AffineGrid": (np.ones((1, 2, 3), np.float32), np.array([1, 1, 1 << 15, 1 << 15])),
    "CenterCropPad": (ONE, np.array([HUGE])),
}
"""An op whose result is far larger than what it reads, with its inputs."""


@pytest.fixture(autouse=True)
def limited(monkeypatch):
    """NumPy computes none of them: onnxscript's folder would before it looks at its limit."""
    evaluate = _constant_folding.ReferenceEvaluator.evaluate

    def run(self, domain, op, version, *args, **kwargs):
        if op in GROWING:
            pytest.fail(f"{op} is computed")
        return evaluate(self, domain, op, version, *args, **kwargs)

    monkeypatch.setattr(_constant_folding.ReferenceEvaluator, "evaluate", run)


@pytest.mark.parametrize("op", GROWING)
def test_a_huge_constant_is_left_alone(op):
    """The small constant beside it is folded all the same."""
    before = peak()
    model = growing(op)
    work = Fold()
    work(model)
    assert [node.op_type for node in model.graph] == [op, "ReduceSum", "Add", "Add"]
    assert peak() - before < (300 << 20) + probe.WORK_LIMIT
    work(model)
    assert work.count == 0


def test_what_fails_is_searched_for_a_bounded_number_of_times(monkeypatch):
    """A thousand constants that cannot be computed cost no thousand attempts."""
    attempts = []

    def refuse(graph, values):
        attempts.append(len(values))
        raise probe.Leaks("no")

    monkeypatch.setattr(fold, "evaluate", refuse)
    assert fold.computed(ir.Graph([], [], nodes=[]), [ir.Value() for _ in range(1000)]) == {}
    assert len(attempts) == fold.FAULTS


def test_one_that_fails_costs_no_other(monkeypatch):
    values = [ir.Value(name=f"v{i}") for i in range(9)]

    def all_but_one(graph, part):
        if values[5] in part:
            raise probe.Leaks("too large")
        return [np.zeros(1) for _ in part]

    monkeypatch.setattr(fold, "evaluate", all_but_one)
    assert set(fold.computed(ir.Graph([], [], nodes=[]), values)) == {*values} - {values[5]}


def growing(op):
    """The sum of an op's huge result and a small constant, added to a graph input."""
    inputs = [
        None if array is None else constant(f"c{i}", array) for i, array in enumerate(GROWING[op])
    ]
    small = ir.node("Neg", [constant("small", ONE)])
    big = ir.node(op, inputs)
    total = ir.node("ReduceSum", [big.outputs[0]], {"keepdims": 0})
    x = ir.Value(name="x", type=ir.TensorType(F32), shape=ir.Shape(["n"]))
    first = ir.node("Add", [x, total.outputs[0]])
    last = ir.node("Add", [first.outputs[0], small.outputs[0]])
    nodes = [small, big, total, first, last]
    for i, node in enumerate(nodes):
        node.name, node.outputs[0].name = f"n{i}", f"v{i}"
    last.outputs[0].type = ir.TensorType(F32)
    known = [value for node in nodes[:2] for value in node.inputs if value is not None]
    graph = ir.Graph(
        [x], [last.outputs[0]], nodes=nodes, initializers=known, opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def constant(name, array):
    """An initializer."""
    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )


def peak():
    """The most memory that this process has had, in bytes; 0 where that is not known."""
    if not Path("/proc/self/status").exists():
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
