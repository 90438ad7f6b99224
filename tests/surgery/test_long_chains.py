"""Work grows in proportion to a graph: of four times the nodes, no function is called far more
than four times as often."""

from __future__ import annotations

import cProfile
import pstats

import numpy as np
import onnx_ir as ir
import pytest

from surgery.engine import runner
from surgery.engine.loading import load_any
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC

F32 = ir.DataType.FLOAT

CHAINS = {
    "add": [("Add", "half")],
    "zeros": [("Add", "zero")],
    "identity": [("Identity",)],
    "reshape": [("Reshape", "two"), ("Reshape", "four"), ("Reshape", "eight")],
    "unsqueeze": [("Unsqueeze", "first"), ("Squeeze", "first")],
    "transpose": [("Transpose",)],
    "gate": [("Sigmoid",), ("Mul", "half"), ("Neg",)],
    "product": [("MatMul", "square"), ("Add", "row")],
}
"""The nodes that repeat, each with the constants that it reads."""
CONSTANTS = {
    "half": np.array(0.5, np.float32),
    "zero": np.array(0, np.float32),
    "two": np.array([2, -1], np.int64),
    "four": np.array([-1, 4], np.int64),
    "eight": np.array([-1, 8], np.int64),
    "first": np.array([0], np.int64),
    "square": np.eye(8, dtype=np.float32),
    "row": np.ones(8, np.float32),
}
SETTINGS = Settings(options=Options(text_precision="fp32"))
SHORT, TIMES, MOST = 64, 4, 1.5


@pytest.mark.parametrize("kind", CHAINS)
def test_calls_grow_with_the_chain(kind, tmp_path):
    few = calls(kind, SHORT, tmp_path)
    many = calls(kind, SHORT * TIMES, tmp_path)
    grown = {
        place: (few[place], count)
        for place, count in many.items()
        if few.get(place, 0) >= SHORT and count > MOST * TIMES * few[place]
    }
    assert not grown


def calls(kind, length, folder):
    """How often each function is called while the recipe for any graph runs."""
    path = folder / "chain.onnx"
    ir.save(chain(CHAINS[kind], length), path)
    model = load_any(path)
    profile = cProfile.Profile()
    profile.enable()
    for _ in runner.run("chain", model, GENERIC["any"], SETTINGS):
        pass
    profile.disable()
    return {place: found[1] for place, found in pstats.Stats(profile).stats.items()}


def chain(steps, length):
    """Nodes in a row, each of which reads the one before."""
    x = ir.Value(name="x", type=ir.TensorType(F32), shape=ir.Shape(["rows", 8]))
    read = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in CONSTANTS.items()
    }
    nodes, value = [], x
    for i in range(length):
        op, *names = steps[i % len(steps)]
        nodes.append(ir.node(op, [value, *(read[name] for name in names)], name=f"n{i}"))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    value.type = ir.TensorType(F32)
    graph = ir.Graph(
        [x], [value], nodes=nodes, initializers=[*read.values()], opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)
