"""Rotary tables: cosines and sines are looked up instead of computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.angles import angles_of
from surgery.match.nodes import other_operand
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant


@dataclass(frozen=True)
class Angle:
    """A cosine or sine of position times frequency."""

    position: ir.Value
    frequencies: np.ndarray
    """`[F]` float32."""
    scale: float
    end: ir.Value


class FreqTable(NodePass[Angle]):
    """Rotary angles become rows of a table.

    before  Cos(Cast(Unsqueeze(position, -1)) * frequencies) * scale, and Sin alike ; the product
            also as MatMul(frequencies, position), turned
    after   Gather(table [rows, F], position)
    keeps   float32 angles, rounded as PyTorch rounds the product ; positions below `rows`:
            onnxruntime raises an error at or above it
    not     frequencies that a node computes
    why     no trigonometry at run time, and rotary ops take tables
    """

    name = "freq_table"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Cos", "Sin")

    def __init__(self, rows: int, *, expect: int | None = None) -> None:
        """Size the tables.

        Args:
            rows: positions 0 to rows - 1: the context length, or the longest side of a grid.
        """
        super().__init__(expect=expect)
        self.rows = rows

    def match(self, node: ir.Node, m: Matcher) -> Angle:
        """From the cosine or sine up to the position, and down to a constant factor."""
        position, frequencies = self.angle(node, m)
        scale, end = 1.0, node.outputs[0]
        users = end.consumers()
        if len(users) == 1 and users[0].op_type == "Mul" and not end.is_graph_output():
            factor = other_operand(users[0], end)
            numbers = constant(factor)
            if numbers is not None and numbers.ndim == 0:
                scale, end = float(numbers), users[0].outputs[0]
        return Angle(position, frequencies.ravel().astype(np.float32), scale, end)

    def angle(self, node: ir.Node, m: Matcher) -> tuple[ir.Value, np.ndarray]:
        """Positions and frequencies: read off the nodes, or by running what stands there."""
        made = node.inputs[0].producer() if node.inputs[0] is not None else None
        if made is not None and made.op_type in ("Transpose", "MatMul", "Reshape", "Identity"):
            assert node.inputs[0] is not None
            found = angles_of(node.inputs[0])
            m.check(not isinstance(found, str), "angles of positions", found)
            assert not isinstance(found, str)
            return found
        angle = m.producer(node.inputs[0], "Mul")
        cast, factors = m.operands(angle, "Cast")
        to = cast.attributes["to"].as_int()
        m.check(to == ir.DataType.FLOAT, "angles in float32", ir.DataType(to))
        frequencies = m.constant(factors, "constant frequencies")
        row = frequencies.size == frequencies.shape[-1] if frequencies.ndim else False
        m.check(row, "one row of frequencies", frequencies.shape)
        lifted = m.producer(cast.inputs[0], "Unsqueeze")
        position = lifted.inputs[0]
        assert position is not None
        m.check(position.dtype == ir.DataType.INT64, "int64 positions", position.dtype)
        axes = m.constant(lifted.inputs[1], "a constant axis").ravel().tolist()
        rank = len(position.shape) if position.shape is not None else None
        m.check(axes in ([-1], [rank]), "positions unsqueezed at the end", axes)
        return position, frequencies

    def rewrite(self, node: ir.Node, found: Angle, add: Builder) -> None:
        """Add the table, then look up its rows."""
        table = tabulate(node.op_type, found.frequencies, found.scale, self.rows)
        kind = node.op_type.lower()
        value = add.constant(table, f"{kind}_table")
        replace(found.end, add("Gather", [value, found.position], {"axis": 0}, like=found.end))


def tabulate(op: str, frequencies: np.ndarray, scale: float, rows: int) -> np.ndarray:
    """Cosines or sines, `[rows, F]` float32, of angles that are rounded to float32 first."""
    angles = np.arange(rows, dtype=np.float32)[:, None] * frequencies
    function = np.cos if op == "Cos" else np.sin
    table: np.ndarray = (function(angles.astype(np.float64)) * scale).astype(np.float32)
    return table
