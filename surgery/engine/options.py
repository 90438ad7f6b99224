"""The user's choices, and what follows from them and from the execution provider alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

import quant
from surgery.base.errors import UserError
from surgery.engine.targets import TARGETS, Target

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
ROUTER = ".mlp.gate.weight"
"""End of the name of a router's weight; it is not quantized, which would change choices."""


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
            raise UserError(
                f"--max-length {self.max_length}: must be at least 2, for a prompt and an answer."
            )
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
    """What a recipe knows about any graph: the options and the execution provider.

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
        """Dtype of activations in the vision and embedding graphs."""
        return DTYPES[self.options.precision]

    @property
    def text_dtype(self) -> ir.DataType:
        """Dtype of activations in the decoder, or in a single graph of another exporter."""
        return self.target.compute if self.quantized else DTYPES[self.options.text_precision]

    def half_op(self, op: str) -> bool:
        """Whether the provider computes an op in float16."""
        return self.target.runs(op, ir.DataType.FLOAT16)

    def is_head(self, name: str) -> bool:
        """Whether a weight is that of the output projection (the head)."""
        return name in self.head_names

    @property
    def head_block(self) -> int:
        """Weights of a head that share a scale."""
        return self.options.block_size

    def format(self, name: str) -> quant.BlockFormat | None:
        """The format of a weight by its name; None if it stays in float."""
        if not self.quantized or name.endswith(ROUTER):
            return None
        if not self.is_head(name):
            return quant.BlockFormat(4, self.options.block_size, self.options.symmetric)
        return quant.BlockFormat(self.options.head_bits, self.head_block, self.options.symmetric)
