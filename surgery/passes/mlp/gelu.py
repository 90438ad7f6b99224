"""GELU becomes one node, in whatever order it was written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.probe import Leaks, Region
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant

REACH = 6
"""Most nodes after Erf or Tanh, and half the values before it, that a match tries."""
GRID = 61
"""Points at which a curve is compared with GELU."""
SCALARS = ("Mul", "Add", "Sub", "Div", "Pow")


@dataclass(frozen=True)
class Curve:
    """A function of one value that was found to be GELU."""

    x: ir.Value
    end: ir.Value
    approximate: str


class Gelu(NodePass[Curve]):
    """GELU becomes one node.

    before  0.5 * x * (1 + Erf(x / sqrt(2))), or
            0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))), in any order
    after   Gelu(x, approximate), or onnxruntime's own Gelu and FastGelu before opset 20
    keeps   the curve up to rounding, which running the nodes on a grid of points confirms
    not     another curve; intermediate values that another node reads
    why     one pass over the widest activation instead of five to nine
    """

    name = "gelu"
    needs = ("dims", "fold", "noop")
    anchors = ("Erf", "Tanh")

    def match(self, node: ir.Node, m: Matcher) -> Curve:
        """The nearest pair of values of which one is GELU of the other."""
        approximate = "none" if node.op_type == "Erf" else "tanh"
        before = list(upstream(node))
        after = list(downstream(node))
        m.check(bool(before and after), "numbers around it", "none")
        for x in before:
            for end in after:
                if is_gelu(node, x, end, approximate):
                    inside = between(x, end)
                    shared = [v.name for v in inside if leaves(v, inside, end)]
                    m.check(not shared, "a curve that nothing else reads into", shared)
                    return Curve(x, end, approximate)
        m.check(False, "the curve of GELU", "another function")
        raise AssertionError

    def rewrite(self, node: ir.Node, found: Curve, add: Builder) -> None:
        """Add one node; the opset decides which."""
        if add.graph.opset_imports.get("", 0) >= 20:
            attributes = {"approximate": found.approximate}
            out = add("Gelu", [found.x], attributes, like=found.end)
        else:
            op = "Gelu" if found.approximate == "none" else "FastGelu"
            out = add(op, [found.x], domain="com.microsoft", like=found.end)
        replace(found.end, out)


def upstream(node: ir.Node) -> Iterator[ir.Value]:
    """Values that `node` is computed from by arithmetic, nearest first."""
    queue = [v for v in node.inputs if v is not None]
    seen: set[ir.Value] = set()
    for _ in range(2 * REACH):
        if not queue:
            return
        value = queue.pop(0)
        if value in seen or constant(value) is not None:
            continue
        seen.add(value)
        yield value
        made = value.producer()
        if made is not None and made.op_type in SCALARS:
            queue += [v for v in made.inputs if v is not None]


def downstream(node: ir.Node) -> Iterator[ir.Value]:
    """Values computed from `node` by arithmetic, nearest first."""
    value = node.outputs[0]
    for _ in range(REACH):
        users = value.consumers()
        if len(users) != 1 or users[0].op_type not in SCALARS:
            return
        value = users[0].outputs[0]
        if users[0].op_type == "Mul":
            yield value


def is_gelu(node: ir.Node, x: ir.Value, end: ir.Value, approximate: str) -> bool:
    """Whether `end` is GELU of `x`, by running what is between them."""
    if x.shape is None or x.dtype != ir.DataType.FLOAT or not isinstance(node.graph, ir.Graph):
        return False
    shape = [d if isinstance(d, int) else 1 for d in x.shape]
    numbers = np.linspace(-6, 6, min(GRID, int(np.prod(shape))), dtype=np.float32)
    try:
        region = Region(node.graph, [x], end)
        got = region({x.name or "": np.resize(numbers, shape)})
    except Leaks:
        return False
    want = np.resize(curve(numbers.astype(np.float64), approximate), shape)
    return got.shape == want.shape and np.allclose(got, want, rtol=1e-4, atol=1e-5)


def curve(x: np.ndarray, approximate: str) -> np.ndarray:
    """GELU of x, exact or by the tanh approximation."""
    if approximate == "tanh":
        bent: np.ndarray = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    else:
        bent = np.vectorize(math.erf)(x / np.sqrt(2))
    return np.asarray(0.5 * x * (1 + bent))


def between(x: ir.Value, end: ir.Value) -> set[ir.Value]:
    """Values from `x` to `end`, both left out."""
    found: set[ir.Value] = set()
    stack = [end]
    while stack:
        made = stack.pop().producer()
        for value in made.inputs if made is not None else ():
            if value is None or value is x or value in found or constant(value) is not None:
                continue
            found.add(value)
            stack.append(value)
    return found


def leaves(value: ir.Value, inside: set[ir.Value], end: ir.Value) -> bool:
    """Whether a node outside the curve reads a value, or the graph returns it."""
    outside = (n.outputs[0] not in inside and n.outputs[0] is not end for n in value.consumers())
    return value.is_graph_output() or any(outside)
