"""Raw ONNX graphs of Qwen-VL models to packages for onnxruntime-genai, pass by pass.

from surgery import load
from surgery.passes.rms_norm import RmsNorm

raw = load("build/raw/decoder.onnx")
done = raw.run(RmsNorm())
print(raw.diff(done))
done.region("layers.0.self_attn")   # a drawing, in a notebook
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.build import operate
    from surgery.facts import Facts, Options
    from surgery.inspect.dump import Dump
    from surgery.inspect.near import explain
    from surgery.inspect.notebook import Graph, load
    from surgery.inspect.report import report
    from surgery.inspect.verify_step import Verify
    from surgery.selection import Selection

HOMES = {
    "Dump": "surgery.inspect.dump",
    "Facts": "surgery.facts",
    "Graph": "surgery.inspect.notebook",
    "Options": "surgery.facts",
    "Selection": "surgery.selection",
    "Verify": "surgery.inspect.verify_step",
    "explain": "surgery.inspect.near",
    "load": "surgery.inspect.notebook",
    "operate": "surgery.build",
    "report": "surgery.inspect.report",
}
"""Modules are loaded when a name is first asked for, so that `--help` stays quick."""

__all__ = [
    "Dump",
    "Facts",
    "Graph",
    "Options",
    "Selection",
    "Verify",
    "explain",
    "load",
    "operate",
    "report",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
