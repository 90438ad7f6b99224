"""Rows of rotary angles are reordered before each angle is repeated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.rotary import once
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant

OPEN = -1
"""The entry of a shape that Reshape infers."""


@dataclass(frozen=True)
class Moved:
    """Rows whose angles are repeated, and the nodes that reorder them afterwards."""

    rows: ir.Value
    steps: tuple[ir.Node, ...]


class LateRepeat(NodePass[Moved]):
    """Rows of angles are reordered at half their width, and repeated afterwards.

    before  Reshape(Gather(Reshape(Concat(c, c), [blocks, size, -1]), order), [rows, -1])
    after   m = Reshape(Gather(Reshape(c, [blocks, size, -1]), order), [rows, -1]) ; Concat(m, m)
    keeps   the rows and their order: only whole rows move
    not     a reshape with a fixed last axis; intermediate rows that another node reads
    why     attention windows reorder the rows; rotary ops take each angle once, at the end
    """

    name = "late_repeat"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Concat",)

    def match(self, node: ir.Node, m: Matcher) -> Moved:
        """A repetition, followed by reshapes and gathers of rows."""
        rows = once(node.outputs[0], m, interleaved=False)
        m.rank(rows, 2)
        m.check(node.attributes["axis"].as_int() in (-1, 1), "columns repeated", node)
        steps: list[ir.Node] = []
        value = node.outputs[0]
        while not value.is_graph_output() and len(users := value.consumers()) == 1:
            if not moves_rows(users[0], value):
                break
            steps.append(users[0])
            value = users[0].outputs[0]
        while steps and len(steps[-1].outputs[0].shape or ()) != 2:
            steps.pop()
        m.check(bool(steps), "rows that are moved afterwards", "none")
        return Moved(rows, tuple(steps))

    def rewrite(self, node: ir.Node, found: Moved, add: Builder) -> None:
        """Apply the same nodes to rows of half the width, then repeat the angles."""
        add.before = found.steps[-1]
        value = found.rows
        for step in found.steps:
            attributes = {key: attribute.value for key, attribute in step.attributes.items()}
            inputs = [value, *step.inputs[1:]]
            dims = list(step.outputs[0].shape or ())
            shape = [*dims[:-1], None]
            value = add(step.op_type, inputs, attributes, dtype=value.dtype, shape=shape)
        value.shape = found.rows.shape
        end = found.steps[-1].outputs[0]
        replace(end, add("Concat", [value, value], {"axis": -1}, like=end))


def moves_rows(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node moves whole rows of `value`: gathers them, or groups them in blocks."""
    if node.inputs[0] is not value:
        return False
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) == 0
    if node.op_type == "GatherND":
        index = node.inputs[1].shape if node.inputs[1] is not None else None
        single = index is not None and len(index) == 2 and index[1] == 1
        return single and node.attributes.get_int("batch_dims", 0) == 0
    return node.op_type == "Reshape" and open_end(node.inputs[1])


def open_end(shape: ir.Value | None) -> bool:
    """Whether the last entry of a shape is -1."""
    numbers = constant(shape)
    made = shape.producer() if shape is not None else None
    if numbers is None and made is not None and made.op_type == "Concat":
        numbers = constant(made.inputs[-1])
    return numbers is not None and bool(np.ravel(numbers)[-1] == OPEN)
