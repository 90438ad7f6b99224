"""The exporter of transformers itself, `transformers.exporters`, with every axis dynamic.

It traces with torch.export like `torch.onnx`, with attention of its own: a guard sets the result to
zero for queries that see no key, and axes that are equal have names of their own. Its models for
generation (`export_for_generation`) are the same graph, and one without a past for the prompt.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from stock import Decoder, Encoder
from transformers import DynamicCache

from export_min.trace import quiet


@dataclass(frozen=True)
class OwnExporter:
    """One way to call it.

    Attributes:
        name: for the table.
        fused: whether it fuses the graph for onnxruntime's CPU provider.
        dynamo: it traces with torch.export, which is slow.
    """

    name: str
    fused: bool = False
    dynamo: bool = True

    def write(self, subject: Decoder | Encoder, attention: str, path: Path) -> None:
        """Export a model; its inputs get the names that the cases have."""
        from transformers.exporters import OnnxConfig, OnnxExporter

        inputs: dict[str, Any] = dict(subject.example())
        if isinstance(subject, Decoder):
            cache = inputs["past_key_values"]
            pairs = zip(cache[::2], cache[1::2], strict=True)
            inputs["past_key_values"] = DynamicCache(list(pairs))
        config = OnnxConfig(dynamic=True, ort_fusions="cpu" if self.fused else None)
        logging.disable()  # torch writes thousands of records where somebody listens
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = OnnxExporter().export(subject.build(attention).model, inputs, config)
        finally:
            logging.disable(logging.NOTSET)
        model = exported.program
        for value, name in zip(model.graph.inputs, subject.names[0], strict=True):
            value.name = name
        ir.save(model, path, external_data="model.onnx.data")


OWN = (OwnExporter("transformers"), OwnExporter("transformers, fused for a CPU", fused=True))
