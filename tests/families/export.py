"""Plain exports of the families' graphs with what PyTorch computes, kept between test runs."""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import text
import torch
import vision

from export_min import attention
from export_min.trace import quiet

GRAPHS = {f"{family.name}, {family.recipe}": family for family in (*text.TEXTS, *vision.TOWERS)}
WEIGHT = 64
"""Bytes from which an initializer counts as a weight: tiny models have tiny weights."""


@dataclass(frozen=True)
class Export:
    """A graph on disk, and inputs with what PyTorch makes of them."""

    path: Path
    cases: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


def exported(name: str, cache: Path) -> Export:
    """Export a graph, or take it from the cache: the same sources, torch and transformers."""
    folder = cache / key(name)
    if not (folder / "cases.npz").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(GRAPHS[name], folder)
    stored = np.load(folder / "cases.npz")
    cases: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for entry in stored.files:
        number, side, value = entry.split("|")
        cases.setdefault(number, ({}, {}))[side == "out"][value] = stored[entry]
    return Export(folder / "model.onnx", list(cases.values()))


def key(name: str) -> str:
    """A word for everything that an export depends on."""
    parts = [name, version("torch"), version("transformers"), version("onnxscript")]
    parts += [
        inspect.getsource(module) for module in (text, vision, attention, sys.modules[__name__])
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write(family: Any, folder: Path) -> None:
    """Export and run in PyTorch."""
    attention.register()
    model = family.build()
    inputs, outputs = family.names
    logging.disable()  # torch writes thousands of records where somebody listens, as pytest does
    with quiet():
        program = torch.onnx.export(
            model,
            kwargs=family.example(),
            dynamo=True,
            opset_version=23,
            optimize=False,
            verbose=False,
            dynamic_shapes=family.dynamic,
            input_names=inputs,
            output_names=outputs,
        )
    logging.disable(logging.NOTSET)
    assert program is not None
    path = folder / "model.onnx"
    ir.save(program.model, path)
    arrays = {}
    stock(model)
    for number, case in enumerate(family.cases()):
        with torch.no_grad():
            out = model(**case)
        for side, names, values in (
            ("in", inputs, flat(case.values())),
            ("out", outputs, flat([out])),
        ):
            for value, array in zip(names, values, strict=True):
                arrays[f"{number}|{side}|{value}"] = array
    np.savez(folder / "cases.npz", **arrays)


def stock(model: torch.nn.Module) -> None:
    """Give a model transformers' own attention, so that the reference owes nothing to ours."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and config._attn_implementation != "eager":
            config._attn_implementation = "sdpa"


def flat(values: Any) -> list[np.ndarray]:
    """Tensors, those of lists and tuples among them."""
    found: list[np.ndarray] = []
    for value in values:
        found += flat(value) if isinstance(value, list | tuple) else [value.numpy()]
    return found
