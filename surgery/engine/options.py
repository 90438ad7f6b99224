"""The user's choices, and what follows from them and from the execution provider alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

import quant
from surgery.base.errors import UserError
from surgery.engine.targets import TARGETS, Target

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
LONGEST = 1 << 20
"""Longest context: four times the longest that a Qwen-VL model was trained for."""
WIDEST = 1 << 14
"""Widest picture of a fixed size, in pixels."""
ROUTER = ".mlp.gate.weight"
"""End of the name of a weight that chooses experts: a rounded one would choose others."""


@dataclass(frozen=True)
class Options:
    """The user's choices; names as on the command line."""

    precision: str = "fp32"
    text_precision: str = "int4"
    execution_provider: str = "cpu"
    image_size: int | None = None
    max_length: int = 32768
    block_size: int = 32
    symmetric: bool = True
    head_bits: int = 8
    hidden_states: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            UserError: the message names the option.
        """
        if self.max_length < 2:
            raise UserError(f"--max-length {self.max_length}: must hold a prompt and an answer.")
        if self.max_length > LONGEST:
            raise UserError(
                f"--max-length {self.max_length}: {LONGEST:,} at most; the rotary table has a row "
                f"for every position."
            )
        if self.image_size is not None and not 1 <= self.image_size <= WIDEST:
            raise UserError(f"--image-size {self.image_size}: must be from 1 to {WIDEST:,} pixels.")
        choices = (
            ("--execution-provider", self.execution_provider, TARGETS),
            ("--precision", self.precision, DTYPES),
            ("--text-precision", self.text_precision, ("int4", *DTYPES)),
        )
        for option, word, known in choices:
            if word not in known:
                raise UserError(f"{option} {word}: must be one of {', '.join(known)}.")


@dataclass(frozen=True)
class Settings:
    """What a recipe knows of any graph: the options and the execution provider.

    Attributes:
        options: the user's choices.
        head_names: names of the weights whose product is the logits.
    """

    options: Options = field(default_factory=Options, kw_only=True)
    head_names: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    def target(self) -> Target:
        """The execution provider."""
        return TARGETS[self.options.execution_provider]

    @property
    def quantized(self) -> bool:
        """Whether the decoder's weights are quantized."""
        return self.options.text_precision == "int4"

    @property
    def vision_dtype(self) -> ir.DataType:
        """Activations of the vision and embedding graphs."""
        return DTYPES[self.options.precision]

    @property
    def text_dtype(self) -> ir.DataType:
        """Activations of the decoder, or of a graph on its own."""
        return self.target.compute if self.quantized else DTYPES[self.options.text_precision]

    def half_op(self, op: str) -> bool:
        """Whether the provider computes an op in float16."""
        return self.target.runs(op, ir.DataType.FLOAT16)

    def is_head(self, name: str) -> bool:
        """Whether a weight is a head."""
        return name in self.head_names

    @property
    def head_block(self) -> int:
        """Weights of a head that share a scale."""
        return self.options.block_size

    def format(self, name: str) -> quant.BlockFormat | None:
        """How a weight is quantized, by its name; None where it stays in float."""
        if not self.quantized or name.endswith(ROUTER):
            return None
        if not self.is_head(name):
            return quant.BlockFormat(4, self.options.block_size, self.options.symmetric)
        return quant.BlockFormat(self.options.head_bits, self.head_block, self.options.symmetric)
