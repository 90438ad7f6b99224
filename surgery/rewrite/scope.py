"""The torch module that a node comes from, as the exporter recorded it."""

from __future__ import annotations

import ast
from functools import lru_cache

import onnx_ir as ir

from surgery.base.metadata import SCOPES


def scope(node: ir.Node) -> str:
    """Module path of a node, "" at the root or where the exporter recorded none."""
    return path(node.metadata_props.get(SCOPES) or "[]")


@lru_cache(maxsize=1024)
def path(recorded: str) -> str:
    """The module path in what an exporter recorded; "" where that is no list."""
    try:
        modules = ast.literal_eval(recorded)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    names = [str(module) for module in modules[:-1]] if isinstance(modules, list | tuple) else []
    named = [name for name in names if not name.startswith("_empty_nn_module")]
    return named[-1] if named else ""


def place(node: ir.Node) -> str:
    """Where a node is, for messages: its module path, or its own name."""
    return scope(node) or node.name or f"an unnamed {node.op_type}"
