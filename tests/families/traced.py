"""One plain export, and what PyTorch computes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from export_min import attention
from export_min.trace import quiet


def trace(family: Any, folder: Path) -> None:
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
