"""Raw ONNX graphs of Qwen-VL models to packages for onnxruntime-genai, pass by pass.

from surgery import load
from surgery.passes.norms.rms_norm import RmsNorm

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
    from surgery.engine.facts import Facts, Options
    from surgery.engine.selection import Selection
    from surgery.graph import Graph, load
    from surgery.show.report import report
    from surgery.watch.check_steps import Verify
    from surgery.watch.dump import Dump
    from surgery.watch.explain import explain

HOMES = {
    "Dump": "surgery.watch.dump",
    "Facts": "surgery.engine.facts",
    "Graph": "surgery.graph",
    "Options": "surgery.engine.facts",
    "Selection": "surgery.engine.selection",
    "Verify": "surgery.watch.check_steps",
    "explain": "surgery.watch.explain",
    "load": "surgery.graph",
    "operate": "surgery.build",
    "report": "surgery.show.report",
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
