"""A package on disk, whose parts are read when they are first used."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.answer.trusted import parts_of, read_package, takes_pictures
from surgery.base.errors import PackageError
from surgery.base.files import Fields
from surgery.base.plugins import PLUGINS, missing
from surgery.engine import loading

PRODUCTS = "MatMulNBits", "MatMulIntegerToFloat"
"""Products with quantized weights."""
QUANTIZED = "int4", "int8"
"""Precisions of packages with quantized weights."""


class Opened:
    """The configurations and graphs of a package. Weights stay on disk."""

    def __init__(self, folder: Path) -> None:
        """Open a package.

        Raises:
            PackageError: the folder has no genai_config.json.
        """
        self.folder = folder
        self.config: dict[str, Any] = read_package(folder, "genai_config.json")

    @property
    def model(self) -> dict[str, Any]:
        """The "model" object of genai_config.json."""
        return self.config["model"]  # type: ignore[no-any-return]

    @property
    def pictured(self) -> bool:
        """Whether the package takes pictures, or is one of a language model."""
        return takes_pictures(self.config)

    @property
    def parts(self) -> tuple[str, ...]:
        """The graphs that the package has."""
        return parts_of(self.config)

    @cached_property
    def processor(self) -> dict[str, Any]:
        """The content of processor_config.json."""
        return read_package(self.folder, self.model["vision"]["config_filename"])

    @cached_property
    def calibrated(self) -> frozenset[str]:
        """Names of the weights whose 4-bit codes a calibration chose, by quantization.json."""
        if not (self.folder / "quantization.json").is_file():
            return frozenset()
        plan = Fields.read(self.folder / "quantization.json", PackageError)
        if not plan.flag("measured"):
            return frozenset()
        rows = [*plan.objects("weights", 1 << 20)]
        if "experts" in plan.values:
            rows += plan.objects("experts", 1 << 20)
        return frozenset(row.text("name") for row in rows if row.values.get("bits") == 4)

    @cached_property
    def graphs(self) -> dict[str, ir.Model]:
        """The graphs by part."""
        return {part: self.load(part) for part in self.parts}

    @cache  # noqa: B019 - a package lives as long as the check of it
    def load(self, part: str) -> ir.Model:
        """The graph of a part.

        Raises:
            PackageError: no such file, or no ONNX graph in it.
        """
        return loading.load(self.path(part))

    def path(self, part: str) -> Path:
        """Return the file of a graph."""
        return self.folder / str(self.model[part]["filename"])

    @cached_property
    def provider(self) -> str:
        """The execution provider of the decoder, by its name in genai_config.json, or "cpu"."""
        options = self.model["decoder"].get("session_options", {}).get("provider_options", [])
        return next((name for entry in options for name in entry), "cpu")

    @property
    def replaced(self) -> str:
        """Why onnxruntime-genai runs the package on the CPU in place of its own provider; "" where
        it runs on that."""
        if self.provider == "cpu":
            return ""
        if self.provider.lower() not in PLUGINS:
            return f"built for {self.provider}"
        return missing(self.config)

    @cached_property
    def precision(self) -> str:
        """The lowest precision in any of the graphs: int4, int8, fp16 or fp32.

        int4 is a decoder with quantized weights, int8 one in float behind a quantized tower.
        """
        for part, word in (("decoder", "int4"), ("vision", "int8")):
            graphs = self.graphs[part].graphs() if part in self.graphs else ()
            if any(node.op_type in PRODUCTS for graph in graphs for node in graph):
                return word
        to = (
            node.attributes.get_int("to", 0)
            for model in self.graphs.values()
            for graph in model.graphs()
            for node in graph
            if node.op_type == "Cast"
        )
        return "fp16" if ir.DataType.FLOAT16 in to else "fp32"

    @cached_property
    def quantized_cache(self) -> bool:
        """Whether past keys and values are stored in 8 bits."""
        inputs = self.graphs["decoder"].graph.inputs
        return any(value.dtype == ir.DataType.INT8 for value in inputs)

    @cached_property
    def grid(self) -> tuple[int, int, int] | None:
        """The grid of a package built for one picture size, or None if any size works."""
        pixels = port(self.graphs["vision"], self.model["vision"]["inputs"]["pixel_values"])
        patches = pixels.shape[0] if pixels is not None and pixels.shape is not None else None
        if not isinstance(patches, int):
            return None
        side = round(patches**0.5)
        return 1, side, side


def port(model: ir.Model, name: str) -> ir.Value | None:
    """Return the graph input or output of a name, or None."""
    every = (*model.graph.inputs, *model.graph.outputs)
    return next((value for value in every if value.name == name), None)
