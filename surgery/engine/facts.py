"""What a run knows of a checkpoint before it starts, read from the manifest of a raw export."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.base.errors import PackageError, UserError
from surgery.base.files import read_json
from surgery.base.pictures import LONGEST_ASPECT
from surgery.base.shards import header_digest
from surgery.engine.families import TRAITS, Traits
from surgery.engine.options import Options, Settings

TABLE = "model.language_model.embed_tokens.weight"
"""The embedding table, which is the head too where the checkpoint ties them."""
HEAD_BLOCK = 128
"""Weights that share a scale in a head of 8 bits."""

MANIFEST = ("source", "checkpoint", "weights", "headers", "config", "resolved", "tied")
"""Keys that the manifest of a raw export must have."""


@dataclass(frozen=True)
class Facts(Settings):
    """A raw export and the options of a run.

    Numbers of the model are those that transformers resolved at the export: the manifest holds
    config.json with every default filled in.

    Attributes:
        raw: the directory of the export.
        manifest: its manifest.json.
    """

    raw: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, raw: Path, options: Options) -> Facts:
        """Read the manifest of a raw export.

        Raises:
            PackageError: the directory is no raw export.
            UserError: the provider does not compute in the chosen precision.
        """
        path = raw / "manifest.json"
        missing = f"{raw}: no raw export (manifest.json missing). Run python -m export_min first."
        manifest = read_json(path, PackageError, missing)
        lacking = [key for key in MANIFEST if key not in manifest]
        if lacking:
            raise PackageError(f"{path}: no {lacking[0]!r}. Run python -m export_min again.")
        facts = cls(raw, manifest, options=options)
        if not facts.target.runs("GroupQueryAttention", facts.text_dtype):
            raise UserError(
                f"-e {facts.target.name} -t {options.text_precision}: {facts.target.provider} has "
                f"attention with a cache in float16 only. Use -t fp16 or -t int4."
            )
        return facts

    def check_unchanged(self) -> None:
        """Raise `PackageError` if the checkpoint is no longer the one that was exported.

        The graphs point into its shards by offset, so a shard written anew would be read wrongly.
        """
        for name, digest in self.manifest["headers"].items():
            shard = self.weights / name
            if not shard.is_file():
                raise PackageError(f"{shard}: is gone since the export; the weights lie there.")
            if header_digest(shard) != digest:
                raise PackageError(f"{shard}: changed since the export. Export again.")
        if self.read("config.json") != self.manifest["config"]:
            raise PackageError(
                f"{self.checkpoint / 'config.json'}: changed since the export. Export again."
            )

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the checkpoint with the defaults of transformers filled in."""
        return self.manifest["resolved"]  # type: ignore[no-any-return]

    @property
    def text(self) -> dict[str, Any]:
        """The text part of the configuration."""
        return self.config["text_config"]  # type: ignore[no-any-return]

    @property
    def vision(self) -> dict[str, Any]:
        """The vision part of the configuration."""
        return self.config["vision_config"]  # type: ignore[no-any-return]

    @property
    def traits(self) -> Traits:
        """What sets the checkpoint's family apart."""
        return TRAITS[self.config["model_type"]]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's directory: tokenizer and configurations."""
        return Path(self.manifest["checkpoint"])

    @property
    def weights(self) -> Path:
        """The folder of the shards."""
        return Path(self.manifest["weights"])

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.text["num_hidden_layers"])

    @cached_property
    def experts(self) -> int:
        """Decoder layers with a mixture of experts."""
        if not self.traits.experts:
            return 0
        plain, step = self.text["mlp_only_layers"], self.text["decoder_sparse_step"]
        return sum(i not in plain and (i + 1) % step == 0 for i in range(self.layers))

    @property
    def fused_experts(self) -> int:
        """Those of them that the provider has an op for; the others ask every expert."""
        fits = self.target.runs("MoE", self.text_dtype) and self.text["hidden_act"] == "silu"
        return self.experts if fits else 0

    @property
    def quantized_experts(self) -> bool:
        """Whether those are quantized: blocks have to divide the rows of all their weights."""
        widths = self.text["hidden_size"], self.text.get("moe_intermediate_size", 0)
        whole = all(int(width) % self.options.block_size == 0 for width in widths)
        fits = self.target.runs("QMoE", self.text_dtype)
        return self.quantized and self.fused_experts > 0 and fits and whole

    @property
    def levels(self) -> int:
        """DeepStack levels; 0 for families without."""
        return len(self.vision.get("deepstack_visual_indexes", ()))

    @property
    def depth(self) -> int:
        """Vision blocks."""
        return int(self.vision["depth"])

    @property
    def gates(self) -> int:
        """Vision blocks with an activation that `Sigmoid` makes."""
        return self.depth if self.vision["hidden_act"] in ("silu", "quick_gelu") else 0

    @property
    def rms_tower(self) -> bool:
        """Whether the vision tower has RMS norms."""
        return self.traits.tower_norm == "rms"

    @property
    def merge(self) -> int:
        """Patches along each side of the square that makes one token."""
        return int(self.vision["spatial_merge_size"])

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.text["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.text["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.text.get("head_dim") or self.text["hidden_size"] // self.heads)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table; transformers decides by family."""
        return bool(self.manifest["tied"])

    @property
    def late_cast(self) -> bool:
        """Whether the vision tower keeps its weights as stored: on a CPU that casts them itself."""
        return self.target.options is None and self.vision_dtype == ir.DataType.FLOAT

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """preprocessor_config.json of the checkpoint."""
        return self.read("preprocessor_config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json of the checkpoint; empty where it has none."""
        path = self.checkpoint / "generation_config.json"
        return self.read(path.name) if path.is_file() else {}

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint."""
        path = self.checkpoint / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except (OSError, json.JSONDecodeError) as e:
            raise PackageError(f"{path}: cannot be read: {e}.") from e

    @property
    def pixels(self) -> tuple[int, int]:
        """Least and most pixels of a picture."""
        size = self.preprocessor.get("size") or {}
        least = size.get("shortest_edge", self.preprocessor.get("min_pixels"))
        most = size.get("longest_edge", self.preprocessor.get("max_pixels"))
        if least is None or most is None:
            raise PackageError(
                f"{self.checkpoint / 'preprocessor_config.json'}: no size (shortest_edge and "
                f"longest_edge, in pixels)."
            )
        return int(least), int(most)

    @property
    def grid_side(self) -> int:
        """Most patches along one side of a picture: rows of the vision rotary table."""
        _, most = self.pixels
        return math.ceil(math.sqrt(most * LONGEST_ASPECT) / int(self.vision["patch_size"]))

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

        Quantized: where the provider picks rows of a quantized table, and blocks divide a row.
        Else: where both graphs compute in float32.
        """
        if not self.tied:
            return False
        if self.quantized:
            whole = int(self.text["hidden_size"]) % self.head_block == 0
            return whole and self.target.runs("GatherBlockQuantized", ir.DataType.FLOAT)
        return self.vision_dtype == self.text_dtype == ir.DataType.FLOAT

    @property
    def quantized_table(self) -> bool:
        """Whether the embedding graph reads the head's blocks."""
        return self.quantized and self.shares_table and self.text_dtype == ir.DataType.FLOAT

    def is_head(self, name: str) -> bool:
        """Whether a weight of the decoder is the head."""
        return name in ("lm_head.weight", TABLE)

    @property
    def head_block(self) -> int:
        """Weights of the head that share a scale.

        8 bits bear larger blocks: a quarter of the scales, and a sixth off the time of the
        head at a token.
        """
        size = self.options.block_size
        wide = self.options.head_bits == 8 and int(self.text["hidden_size"]) % HEAD_BLOCK == 0
        return max(size, HEAD_BLOCK) if wide else size
