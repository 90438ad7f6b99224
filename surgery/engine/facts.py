"""What a run decides before it starts, from the checkpoint, the options and the provider."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

import quant
from surgery.base.errors import UserError
from surgery.calibrate.plan import Plan, in_eight_bits, in_rows, kept
from surgery.engine.checkpoint import Checkpoint, read_manifest
from surgery.engine.options import Options, Settings
from surgery.match.products import linear
from surgery.passes.attention.quantized_cache import Ranges
from surgery.passes.outputs.shortlist import LARGE

TABLE = "model.language_model.embed_tokens.weight"
"""The embedding table, which is also the head of a tied checkpoint."""
HEAD = "lm_head.weight"
"""The head of any other checkpoint."""
PATCHES = "model.visual.patch_embed.proj.weight"
"""The first weight of the vision tower, which reads pixels."""
BLOCKS = 256, 128, 64, 32, 16
"""Numbers of weights that may share a scale."""
HEAD_BLOCK = 128
"""Weights that share a scale in a head of 8 bits, at least."""


@dataclass(frozen=True)
class Facts(Settings, Checkpoint):
    """A checkpoint and the options of a run, and what follows from both together.

    Attributes:
        tower: the formats of the vision graph's linear weights, where they are quantized.
        cache_ranges: the largest past keys and values, where these are stored in 8 bits.
    """

    tower: Plan | None = field(default=None, kw_only=True)
    cache_ranges: Ranges | None = field(default=None, kw_only=True)

    @classmethod
    def load(cls, raw: Path, options: Options) -> Facts:
        """Read the manifest of a raw export.

        Raises:
            PackageError: the directory is no raw export.
            UserError: the provider has no attention with a cache in the chosen precision.
        """
        facts = cls(raw, read_manifest(raw), options=options)
        if not facts.target.runs("GroupQueryAttention", facts.text_dtype):
            raise UserError(
                f"-e {facts.target.name} -t {options.text_precision}: {facts.target.provider} has "
                f"attention with a cache in float16 only. Use -t fp16 or -t int4."
            )
        if options.own_prefill and facts.experts:
            raise UserError(
                f"--prefill {options.prefill}: for decoders without experts, and this one has "
                f"{facts.experts} layers of them. Leave it out."
            )
        return facts

    @property
    def fused_experts(self) -> int:
        """Layers whose experts become one op; in the others every expert runs on every token."""
        fits = self.target.runs("MoE", self.text_dtype) and self.text["hidden_act"] == "silu"
        return self.experts if fits else 0

    @property
    def expert_format(self) -> quant.BlockFormat | None:
        """The format of fused experts: the largest block that divides all rows.

        None where no block does, or where the package has no op for quantized experts.
        """
        if not (self.quantized and self.fused_experts > 0):
            return None
        if not self.target.runs("QMoE", self.text_dtype):
            return None
        widths = self.text["hidden_size"], self.text.get("moe_intermediate_size", 0)
        common, largest = math.gcd(*map(int, widths)), self.options.block_size
        fitting = (size for size in BLOCKS if size <= largest and common % size == 0)
        size = next(fitting, None)
        return None if size is None else quant.BlockFormat(4, size, self.options.symmetric)

    @property
    def quantized_experts(self) -> bool:
        """Whether fused experts are quantized."""
        return self.expert_format is not None

    @property
    def quantized_tower(self) -> bool:
        """Whether the linear weights of the vision tower are quantized, to 8 bits."""
        return self.options.vision_precision == "int8"

    @property
    def integer_tower(self) -> bool:
        """Whether the products of the quantized tower are those of integers, where the provider has
        the op; elsewhere weights are in 8-bit blocks."""
        return self.quantized_tower and self.target.runs("MatMulIntegerToFloat", self.vision_dtype)

    @property
    def tower_weights(self) -> int:
        """Linear weights of the vision tower: of its blocks and its mergers."""
        matrices = 5 if self.rms_tower else 4  # one more where the MLP has a gate
        return matrices * self.depth + 2 * (1 + self.levels)

    def quantized_in_tower(self, name: str) -> bool:
        """Whether a weight of the vision graph is quantized if it is that of a linear layer.

        The patch embedding is not: rounding it would round the picture itself.
        """
        return name != PATCHES and not kept([name], self.options.keep)

    def plan_tower(self, model: ir.Model) -> Plan:
        """The formats of the vision graph's linear weights."""
        found = linear(model, lambda name: not self.quantized_in_tower(name))
        return in_rows(found) if self.integer_tower else in_eight_bits(found, self.vision_dtype)

    @property
    def float_tower_on_cpu(self) -> bool:
        """Whether the vision tower runs in float32 on onnxruntime's native CPU provider."""
        on_cpu = self.target.options is None and not self.browser
        return on_cpu and self.vision_dtype == ir.DataType.FLOAT

    @property
    def late_cast(self) -> bool:
        """Whether the vision tower stores weights as the checkpoint does: on a CPU in float32.

        The WebAssembly build that transformers.js loads cannot read bfloat16.
        """
        return self.float_tower_on_cpu

    @property
    def fused_skips(self) -> bool:
        """Whether residual sums of the vision tower become one node with the norm behind them.

        On a CPU in float32 onnxruntime's kernel for that node takes more than 3 times as long as
        those for both (`tests/bench/norms.py`).
        """
        return not self.float_tower_on_cpu

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """The one fixed grid, (1, h, w), or None for any."""
        size, patch = self.options.image_size, int(self.vision["patch_size"])
        if size is None:
            return None
        unit = patch * int(self.vision["spatial_merge_size"])
        if size < unit or size % unit:
            raise UserError(f"--image-size {size}: must be a multiple of {unit}.")
        return 1, size // patch, size // patch

    @property
    def fixed_grid(self) -> tuple[int, int, int]:
        """The one fixed grid of a run that has one."""
        assert self.grid is not None
        return self.grid

    @property
    def shares_table(self) -> bool:
        """Whether the embedding graph and the head read the same bytes.

        When quantized: if the provider has a lookup in quantized tables and blocks divide a row.
        Otherwise: if both graphs compute in float32, and the provider multiplies by a transposed
        weight without transposing it.
        """
        if not self.tied or self.browser:  # a browser fetches the data of each graph by itself
            return False
        if self.quantized:
            whole = int(self.text["hidden_size"]) % self.head_block == 0
            lookup = self.of("embedding").target
            return whole and lookup.runs("GatherBlockQuantized", ir.DataType.FLOAT)
        float32 = ir.DataType.FLOAT
        untransposed = self.of("decoder").target.runs("FusedMatMul", float32)
        return untransposed and self.vision_dtype == self.text_dtype == float32

    @property
    def quantized_table(self) -> bool:
        """Whether the embedding table is quantized.

        Elsewhere than in a browser only where it is the head, whose blocks both graphs read.
        """
        if self.browser:
            return self.quantized and int(self.text["hidden_size"]) % self.wide_block == 0
        return self.quantized and self.shares_table and self.text_dtype == ir.DataType.FLOAT

    @property
    def wide_table(self) -> bool:
        """Whether the embedding table is stored in float32, whatever the checkpoint has."""
        if self.browser:
            return not self.quantized_table
        return self.shares_table and not self.quantized

    @property
    def shortlisted(self) -> bool:
        """Whether a head in 4 bits chooses the tokens whose logits the head in 8 bits computes.

        Where a vocabulary is large and a row has whole blocks.
        """
        if not super().shortlisted:
            return False
        whole = int(self.text["hidden_size"]) % self.head_block == 0
        large = int(self.text["vocab_size"]) >= LARGE * self.options.shortlist
        return whole and large and not kept([self.head], self.options.keep)

    @property
    def head(self) -> str:
        """The name of the head's weight."""
        return TABLE if self.tied else HEAD

    def is_head(self, name: str) -> bool:
        """Whether a weight of the decoder is the head."""
        return name in (HEAD, TABLE)

    @property
    def head_block(self) -> int:
        """Weights of the head that share a scale."""
        return self.wide_block if self.options.head_bits == 8 else self.options.block_size

    @property
    def wide_block(self) -> int:
        """Weights of a head or a table in 8 bits that share a scale.

        With 8 bits, larger blocks lose little accuracy: they need a quarter of the scales and
        take a sixth off the time of the head per token.
        """
        size = self.options.block_size
        wide = int(self.text["hidden_size"]) % HEAD_BLOCK == 0
        return max(size, HEAD_BLOCK) if wide else size

    def table_format(self, name: str) -> quant.BlockFormat | None:
        """The format of the embedding table: that of the head, whose blocks both graphs read.

        For a browser, each graph has its own: then the table has 8 bits whatever the head has.
        """
        if self.browser:
            return quant.BlockFormat(8, self.wide_block, self.options.symmetric)
        return self.format(name)
