"""The torch module that a node comes from, as the exporter recorded it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

import onnx_ir as ir

from surgery.base.metadata import SCOPES


def scope(node: ir.Node) -> str:
    """Module path of a node, "" at the root or where the exporter recorded none."""
    return path(node.metadata_props.get(SCOPES) or "[]")


@lru_cache(maxsize=1024)
def path(recorded: str) -> str:
    """The module path in what an exporter recorded; "" where that is no list."""
    named = [name for name in modules(recorded) if not name.startswith("_empty_nn_module")]
    return named[-1] if named else ""


@lru_cache(maxsize=1024)
def modules(recorded: str) -> tuple[str, ...]:
    """The modules that an exporter recorded, outermost first; none where it is no list."""
    try:
        found = ast.literal_eval(recorded)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    return tuple(map(str, found[:-1])) if isinstance(found, list | tuple) else ()


def around(nodes: Iterable[ir.Node], name: str) -> dict[str, str]:
    """The metadata of a node of a name in the innermost module that holds all of some nodes."""
    recorded = [modules(node.metadata_props.get(SCOPES) or "[]") for node in nodes]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*recorded, strict=False))
    common = [level[0] for level in levels]
    return {SCOPES: repr([*common, name])} if common else {}


def place(node: ir.Node) -> str:
    """Where a node is, for messages: its module path, or its own name."""
    return scope(node) or node.name or f"an unnamed {node.op_type}"
