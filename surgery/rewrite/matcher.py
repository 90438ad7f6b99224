"""Conditions of a match, and the small constants that they read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.rewrite.scope import place

LARGEST_CONSTANT = 1 << 16
"""Most elements of a constant that matching reads; weights are never read."""


class Miss(Exception):
    """A node is no site: the first condition that failed, and what was found instead."""

    def __init__(self, node: ir.Node, condition: str, found: object, depth: int) -> None:
        super().__init__(f"{place(node)}: needs {condition}; found {found}")
        self.node, self.condition, self.found, self.depth = node, condition, found, depth


class Matcher:
    """Checks the conditions of one match and counts them: a `Miss` says how many held."""

    def __init__(self, anchor: ir.Node) -> None:
        self.anchor = anchor
        self.depth = 0

    def check(self, holds: bool, condition: str, found: object) -> None:
        """Count a condition that holds, else raise `Miss`."""
        if not holds:
            raise Miss(self.anchor, condition, found, self.depth)
        self.depth += 1

    def producer(self, value: ir.Value | None, *ops: str) -> ir.Node:
        """The node that computes `value`, of one of the op types `ops`."""
        node = value.producer() if value is not None else None
        name = value.name if value is not None else "an absent input"
        found = node.op_type if node is not None else "no node: a graph input or constant"
        self.check(
            node is not None and node.op_type in ops, f"{name} from {' or '.join(ops)}", found
        )
        assert node is not None
        return node

    def operands(self, node: ir.Node, op: str) -> tuple[ir.Node, ir.Value]:
        """The inputs of a commutative node: the one computed by `op`, and the other."""
        a, b = node.inputs[:2]
        assert a is not None and b is not None
        for one, other in ((a, b), (b, a)):
            made = one.producer()
            if made is not None and made.op_type == op:
                self.depth += 1
                return made, other
        kinds = [v.producer().op_type if v.producer() else "constant" for v in (a, b)]  # type: ignore[union-attr]
        raise Miss(self.anchor, f"an operand of {node.op_type} from {op}", kinds, self.depth)

    def constant(self, value: ir.Value | None, what: str = "a constant") -> np.ndarray:
        """The numbers of a small constant."""
        tensor = constant(value)
        found = "no input" if value is None else f"{value.name}, computed or too large"
        self.check(tensor is not None, what, found)
        assert tensor is not None
        return tensor

    def user(self, value: ir.Value, op: str) -> ir.Node:
        """The only node that reads `value`, of op type `op`."""
        users = value.consumers()
        found = ", ".join(node.op_type for node in users) or "a graph output"
        fits = len(users) == 1 and users[0].op_type == op and not value.is_graph_output()
        self.check(fits, f"{value.name} read by one {op} alone", found)
        return users[0]

    def rank(self, value: ir.Value, *ranks: int) -> None:
        """The rank of `value` is known and one of `ranks`."""
        found = "unknown" if value.shape is None else len(value.shape)
        self.check(found in ranks, f"{value.name} of rank {' or '.join(map(str, ranks))}", found)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant value: an initializer or the output of `Constant`."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return None  # a weight
    if tensor.size > LARGEST_CONSTANT:
        return None
    return np.asarray(tensor.numpy())
