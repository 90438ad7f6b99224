"""The user's choices, and what follows from them and from the execution provider alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import onnx_ir as ir

import quant
from surgery.base.errors import UserError
from surgery.calibrate.plan import Plan, base_format, from_structure, kept
from surgery.engine.targets import BROWSER, TARGETS, Target
from surgery.match.products import linear
from surgery.rewrite.two_forms import LONG

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
PRECISIONS = {**DTYPES, "int8": ir.DataType.FLOAT}
"""Dtypes of activations in the vision and embedding graphs by `--precision`."""
AUTO = "auto"
"""The precision that other options decide: see `Options.vision_precision`."""
GENAI, TRANSFORMERS_JS = "onnxruntime-genai", "transformers.js"
RUNTIMES = GENAI, TRANSFORMERS_JS
"""The programs that a package can be made for."""
CACHES = "float", "int8"
"""How past keys and values are stored: in the dtype of the decoder, or in 8 bits."""
PREFILLS = "same", "int8"
"""What prompts are multiplied by: the weights of answers, or weights of their own in 8 bits."""
MOST_LISTED = 4096
"""Tokens of `--shortlist` at most: their rows of the head are unpacked together."""
LONGEST = 1 << 20
"""Longest context: four times the longest that a Qwen-VL model was trained for."""
WIDEST = 1 << 14
"""Widest picture of a fixed size, in pixels."""
ROUTER = ".mlp.gate.weight"
"""End of the name of a router's weight; it is not quantized, which would change choices."""


@dataclass(frozen=True)
class Preset:
    """How much is spent on quantization.

    Attributes:
        bits: bits for each weight of the decoder's layers, scales and zero points included.
        calibrated: whether a forward pass over sampled tokens decides codes and bits.
    """

    bits: float
    calibrated: bool


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset(bits=4.75, calibrated=False),
        "balanced": Preset(bits=4.5, calibrated=True),
        "best": Preset(bits=5.0, calibrated=True),
    }
)
"""Presets of `--preset`."""


@dataclass(frozen=True)
class Options:
    """The user's choices; names as on the command line.

    `vision_precision` is what a precision of `AUTO` stands for.
    """

    precision: str = AUTO
    text_precision: str = "int4"
    execution_provider: str = "cpu"
    runtime: str = GENAI
    image_size: int | None = None
    max_length: int = 32768
    preset: str = "fast"
    bits: float | None = None
    keep: str | None = None
    calibrate: str | None = None
    block_size: int = 128
    symmetric: bool = False
    head_bits: int = 8
    shortlist: int = 256
    kv_cache: str = "float"
    prefill: str = "same"
    hidden_states: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            UserError: the message names the option.
        """
        if self.max_length < 2:
            raise UserError(
                f"--max-length {self.max_length}: must be at least 2, for a prompt and an answer."
            )
        if self.bits is not None and not 2 < self.bits <= 8.25:
            raise UserError(f"--bits {self.bits:g}: must be above 2 and at most 8.25.")
        if self.max_length > LONGEST:
            raise UserError(
                f"--max-length {self.max_length}: {LONGEST:,} at most; the rotary table has a row "
                f"for every position."
            )
        if not 0 <= self.shortlist <= MOST_LISTED:
            raise UserError(f"--shortlist {self.shortlist}: must be from 0 to {MOST_LISTED:,}.")
        if self.image_size is not None and not 1 <= self.image_size <= WIDEST:
            raise UserError(f"--image-size {self.image_size}: must be from 1 to {WIDEST:,} pixels.")
        choices = (
            ("--execution-provider", self.execution_provider, TARGETS),
            ("--precision", self.precision, (*PRECISIONS, AUTO)),
            ("--text-precision", self.text_precision, ("int4", *DTYPES)),
            ("--for", self.runtime, RUNTIMES),
            ("--preset", self.preset, PRESETS),
            ("--kv-cache", self.kv_cache, CACHES),
            ("--prefill", self.prefill, PREFILLS),
        )
        for option, word, known in choices:
            if word not in known:
                raise UserError(f"{option} {word}: must be one of {', '.join(known)}.")
        if self.runtime == TRANSFORMERS_JS:
            self.check_browser()
        if self.quantized_cache:
            self.check_cache()
        if self.own_prefill:
            self.check_prefill()
        if self.calibrate is not None and not (
            self.text_precision == "int4" and PRESETS[self.preset].calibrated
        ):
            raise UserError(
                f"--calibrate {self.calibrate}: nothing is calibrated. Add --preset balanced or "
                f"best, with -t int4."
            )

    def check_browser(self) -> None:
        """Refuse what transformers.js cannot follow.

        Raises:
            UserError: the message names the option.
        """
        if self.execution_provider != "cpu":
            raise UserError(
                f"--for {self.runtime} -e {self.execution_provider}: one package serves all its "
                f"devices, and the device is chosen when the model is loaded. Leave -e out."
            )
        if self.image_size is not None:
            raise UserError(
                f"--for {self.runtime} --image-size {self.image_size}: its processor chooses the "
                f"size of each picture. Leave --image-size out."
            )

    @property
    def vision_precision(self) -> str:
        """The precision of the vision and embedding graphs, one of `PRECISIONS`.

        `AUTO` is int8 beside a quantized decoder in packages for onnxruntime-genai on a CPU, where
        the tower in 8 bits moves answers far less than the decoder's 4 bits and is about twice as
        fast; anywhere else it is fp32.
        """
        if self.precision != AUTO:
            return self.precision
        on_cpu = self.execution_provider == "cpu" and self.runtime == GENAI
        return "int8" if on_cpu and self.text_precision == "int4" else "fp32"

    @property
    def quantized_cache(self) -> bool:
        """Whether past keys and values are stored in 8 bits."""
        return self.kv_cache == "int8"

    @property
    def own_prefill(self) -> bool:
        """Whether prompts are multiplied by weights of their own, in 8 bits."""
        return self.prefill == "int8"

    def check_prefill(self) -> None:
        """Refuse weights for prompts where they are no faster than those for answers, or not run.

        Raises:
            UserError: the message names the option.
        """
        known = self.execution_provider == "cpu" and self.runtime == GENAI
        if not known or self.text_precision != "int4":
            raise UserError(
                f"--prefill {self.prefill}: for packages for {GENAI} on a CPU whose decoder is in "
                f"INT4. Use -e cpu with -t int4, or leave it out."
            )

    def check_cache(self) -> None:
        """Refuse an 8-bit cache where onnxruntime has no kernel that reads it.

        Raises:
            UserError: the message names the option.
        """
        known = self.execution_provider == "cpu" and self.runtime == GENAI
        if not known or self.text_precision == "fp16":
            raise UserError(
                f"--kv-cache {self.kv_cache}: for packages for {GENAI} on a CPU whose decoder "
                f"computes in float32. Use -e cpu with -t int4 or -t fp32, or leave it out."
            )

    def data(self) -> dict[str, Any]:
        """As plain data for a file that may be given away: of a path only its last part."""
        name = None if self.calibrate is None else Path(self.calibrate).name
        return asdict(self) | {"calibrate": name, "precision": self.vision_precision}


@dataclass(frozen=True)
class Settings:
    """What a recipe knows about any graph: the options and the execution provider.

    Attributes:
        options: the user's choices.
        plan: the formats of the linear weights, where a calibration chose them.
        head_widths: weights whose product is the logits, with the width of what they multiply.
        graph: which graph of a package it is about; see `of`.
    """

    options: Options = field(default_factory=Options, kw_only=True)
    plan: Plan | None = field(default=None, kw_only=True)
    head_widths: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    graph: str = field(default="decoder", kw_only=True)

    def of(self, graph: str) -> Self:
        """The same about another graph of the package, which may run on another provider."""
        return replace(self, graph=graph)

    @property
    def target(self) -> Target:
        """The execution provider of the graph: the one that was asked for, or the CPU where that
        leaves the graph to it; or what the execution providers of transformers.js share."""
        if self.browser:
            return BROWSER
        asked = TARGETS[self.options.execution_provider]
        return asked if self.graph in asked.parts else TARGETS["cpu"]

    @property
    def browser(self) -> bool:
        """Whether the package is for transformers.js, which computes positions and puts features
        in place itself."""
        return self.options.runtime == TRANSFORMERS_JS

    @property
    def quantized(self) -> bool:
        """Whether the decoder's weights are quantized."""
        return self.options.text_precision == "int4"

    @property
    def vision_dtype(self) -> ir.DataType:
        """Dtype of activations in the vision and embedding graphs."""
        return PRECISIONS[self.options.vision_precision]

    @property
    def text_dtype(self) -> ir.DataType:
        """Dtype of activations in the decoder, or in a single graph of another exporter."""
        if self.quantized:
            half = self.browser and self.options.vision_precision == "fp16"  # q4f16
            return ir.DataType.FLOAT16 if half else self.target.compute
        return DTYPES[self.options.text_precision]

    @property
    def bits(self) -> float:
        """Bits for each linear weight, scales and zero points included."""
        return self.options.bits or PRESETS[self.options.preset].bits

    @property
    def strict(self) -> bool:
        """Whether the bits were asked for; a preset's are a wish, which odd shapes may exceed."""
        return self.options.bits is not None

    def not_planned(self, name: str) -> bool:
        """Whether a weight's format does not depend on a plan: that of a head or a router."""
        return self.is_head(name) or name.endswith(ROUTER)

    def planned(self, name: str) -> bool:
        """Whether a linear weight of the decoder has a format of its own: no head, no router, and
        none that stays in float."""
        return not self.not_planned(name) and not kept([name], self.options.keep)

    def for_long_inputs(self, name: str) -> bool:
        """Whether a weight is one that only prompts are multiplied by."""
        return name.endswith(LONG)

    def plan_weights(self, model: ir.Model) -> Plan:
        """The formats of a graph's linear weights."""
        return self.plan or from_structure(
            linear(model, self.not_planned),
            self.bits,
            self.options.keep,
            self.text_dtype,
            self.options.symmetric,
            self.options.block_size,
            self.strict,
        )

    def half_op(self, op: str) -> bool:
        """Whether the provider computes an op in float16."""
        return self.target.runs(op, ir.DataType.FLOAT16)

    def is_head(self, name: str) -> bool:
        """Whether a weight is that of the output projection (the head)."""
        return name in self.head_widths

    @property
    def quantized_tables(self) -> bool:
        """Whether a lookup in an embedding table may read a quantized head's blocks."""
        known = self.target.runs("GatherBlockQuantized", ir.DataType.FLOAT)
        return self.quantized and known and self.text_dtype == ir.DataType.FLOAT

    def table_format(self, name: str) -> quant.BlockFormat | None:
        """The format of an embedding table: that of the head that it is, None for any other.

        None too where the provider's lookup does not take the head's format.
        """
        format = self.format(name) if self.is_head(name) else None
        if format is None or self.target.odd_zero_points:
            return format
        odd = self.head_widths[name] // format.block % 2 == 1
        return None if odd and format.bits == 4 and not format.symmetric else format

    @property
    def shortlisted(self) -> bool:
        """Whether a head in 4 bits may choose the tokens whose logits a head in 8 bits computes: on
        a CPU, where reading the head takes a good part of the time of a token."""
        on_cpu = self.target.options is None and not self.browser
        eight = self.quantized and self.options.head_bits == 8
        return on_cpu and eight and self.options.shortlist > 0

    @property
    def head_block(self) -> int:
        """Weights of a head that share a scale: the most that its rows are made of."""
        size = self.options.block_size
        return min(
            (base_format(k, block=size).block for k in self.head_widths.values()), default=size
        )

    def format(self, name: str) -> quant.BlockFormat | None:
        """The format of a weight by its name; None if it stays in float."""
        if not self.quantized or name.endswith(ROUTER):
            return None
        if not self.is_head(name):
            return quant.BlockFormat(4, self.options.block_size, self.options.symmetric)
        return quant.BlockFormat(self.options.head_bits, self.head_block, self.options.symmetric)
