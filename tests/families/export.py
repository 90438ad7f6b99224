"""Plain exports of the families' graphs with what PyTorch computes, kept between test runs."""

from __future__ import annotations

import hashlib
import inspect
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import crossed
import numpy as np
import text
import vision

FAMILIES = (*text.TEXTS, crossed.TEXT, *vision.TOWERS, crossed.TOWER)
GRAPHS = {f"{family.name}, {family.recipe}": family for family in FAMILIES}
SHARED = ("traced", "text", "export_min.attention")
"""Modules that every export depends on, besides its own."""


@dataclass(frozen=True)
class Export:
    """A graph on disk, and inputs with what PyTorch makes of them."""

    path: Path
    cases: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


def exported(name: str, family: Any, cache: Path) -> Export:
    """Export a graph, or take it from the cache: the same sources, torch and transformers."""
    word = re.sub(r"\W+", "-", name)
    folder = cache / f"{word}.{key(name, family)}"
    if not (folder / "done").is_file():
        for stale in cache.glob(f"{word}.*"):
            shutil.rmtree(stale)
        folder.mkdir(parents=True)
        family.write(folder)
        (folder / "done").touch()
    stored = np.load(folder / "cases.npz")
    cases: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for entry in stored.files:
        number, side, value = entry.split("|")
        cases.setdefault(number, ({}, {}))[side == "out"][value] = stored[entry]
    return Export(folder / "model.onnx", list(cases.values()))


def key(name: str, family: Any) -> str:
    """A word for everything that an export depends on."""
    parts = [name, version("torch"), version("transformers"), version("onnxscript")]
    parts += [
        inspect.getsource(sys.modules[module])
        for module in sorted({*SHARED, type(family).__module__})
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
