"""Passes on ONNX graphs, and packages of Qwen-VL models for onnxruntime-genai.

from surgery import load, passes as p

graph = load("X.onnx").run(*p.TIDY, p.RmsNorm(), p.GroupQueryAttention(expect=28))
graph.save("out")  # out/X.onnx, its weights beside it

The names in `__all__` are the public interface; surgery/docs/interface.md describes them. All
other modules may change between releases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery import passes
    from surgery.answer.runtime import Runtime
    from surgery.base.errors import UserError
    from surgery.engine.options import Options
    from surgery.graph import Graph, Outcome, load
    from surgery.jobs.apply import apply
    from surgery.jobs.build import build
    from surgery.verify import verify_package
    from surgery.watch.explain import explain

HOMES = {
    "Graph": "surgery.graph",
    "Options": "surgery.engine.options",
    "Outcome": "surgery.graph",
    "Runtime": "surgery.answer.runtime",
    "UserError": "surgery.base.errors",
    "apply": "surgery.jobs.apply",
    "build": "surgery.jobs.build",
    "explain": "surgery.watch.explain",
    "load": "surgery.graph",
    "passes": "surgery",
    "verify_package": "surgery.verify",
}
"""Where each public name lives. Modules load when a name is first asked for, so that `--help` and
scripts that need three passes stay quick."""

__all__ = [
    "Graph",
    "Options",
    "Outcome",
    "Runtime",
    "UserError",
    "apply",
    "build",
    "explain",
    "load",
    "passes",
    "verify_package",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    if name == "passes":
        return importlib.import_module("surgery.passes")
    return getattr(importlib.import_module(HOMES[name]), name)
