"""The torch module that a node comes from, as the exporter recorded it."""

from __future__ import annotations

import ast

import onnx_ir as ir

from surgery.base.metadata import SCOPES


def scope(node: ir.Node) -> str:
    """Module path of a node, "" at the root or where the exporter recorded none."""
    recorded = node.metadata_props.get(SCOPES)
    if not recorded:
        return ""
    *modules, _ = ast.literal_eval(recorded)
    named = [str(module) for module in modules if not str(module).startswith("_empty_nn_module")]
    return named[-1] if named else ""


def place(node: ir.Node) -> str:
    """Where a node is, for people: its module path, or its own name."""
    return scope(node) or node.name or f"an unnamed {node.op_type}"
