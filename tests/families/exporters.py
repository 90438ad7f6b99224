"""Ways in which people export a model, each with its defaults."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stock import Decoder, Encoder

from export_min.trace import quiet


@dataclass(frozen=True)
class Exporter:
    """One way to export.

    Attributes:
        name: for the table.
        dynamo: the exporter that traces with torch.export, or the older one that runs TorchScript.
        opset: the version asked for; None for the exporter's default.
    """

    name: str
    dynamo: bool
    opset: int | None

    def write(self, subject: Decoder | Encoder, attention: str, path: Path) -> None:
        """Export a model; weights lie where torch's own saver puts them."""
        model, inputs = subject.build(attention), subject.example()
        names, outputs = subject.names
        logging.disable()  # torch writes thousands of records where somebody listens
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.dynamo:
                    program = torch.onnx.export(
                        model,
                        tuple(inputs.values()),
                        dynamo=True,
                        verbose=False,
                        dynamic_shapes=positional(subject),
                        input_names=names,
                        output_names=outputs,
                        opset_version=self.opset,
                    )
                    assert program is not None
                    program.save(path, external_data=True)
                else:
                    torch.onnx.export(
                        model,
                        tuple(inputs.values()),
                        str(path),
                        dynamo=False,
                        dynamic_axes=axes(subject),
                        input_names=names,
                        output_names=outputs,
                        opset_version=self.opset,
                    )
        finally:
            logging.disable(logging.NOTSET)


def positional(subject: Decoder | Encoder) -> tuple[Any, ...]:
    """Dynamic axes in the order of the arguments; an encoder takes them as `*inputs`."""
    dynamic = tuple(subject.dynamic.values())
    return dynamic if isinstance(subject, Decoder) else (dynamic,)


def axes(subject: Decoder | Encoder) -> dict[str, dict[int, str]]:
    """Dynamic axes of each input and output by its name, as TorchScript's exporter wants them."""
    found: dict[str, dict[int, str]] = {}
    names, outputs = subject.names
    flat: list[dict[int, str]] = []
    for axis in subject.dynamic.values():
        flat += axis if isinstance(axis, list) else [axis]
    found.update(zip(names, flat, strict=True))
    for name in outputs:
        cache = name.startswith("present")
        found[name] = {0: "batch", 2: "total"} if cache else {0: "batch", 1: "sequence"}
        if isinstance(subject, Encoder) and subject.input != "input_ids":
            found[name] = {0: "batch"}
    return found


EXPORTERS = (
    Exporter("torch.onnx", True, None),
    Exporter("torch.onnx, opset 23", True, 23),
    Exporter("TorchScript, opset 17", False, 17),
)
