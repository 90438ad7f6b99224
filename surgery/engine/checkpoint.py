"""What a raw export says about its checkpoint, independent of the options of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from surgery.base.errors import PackageError
from surgery.base.files import MANIFEST_BYTES, Fields, read_json
from surgery.base.pictures import LONGEST_ASPECT
from surgery.base.shards import header_digest, sample_digest
from surgery.base.tokens import Tokens
from surgery.base.videos import KEY as VIDEO_KEY
from surgery.base.videos import Settings as VideoSettings
from surgery.engine.families import TRAITS, Traits

MOST_PIXELS = 1 << 30
"""Largest picture that a processor may ask for; the tower's rotary table grows with its side."""
MANIFEST = ("source", "checkpoint", "weights", "headers", "config", "resolved", "tied")
"""Keys that the manifest of a raw export must have."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, described by its raw export.

    The numbers are those that transformers resolved at the export: the manifest holds config.json
    with every default filled in.

    Attributes:
        raw: the directory of the export.
        manifest: its manifest.json.
    """

    raw: Path
    manifest: dict[str, Any]

    def check_unchanged(self) -> None:
        """Raise `PackageError` if the checkpoint is no longer the one that was exported.

        The graphs refer to its shards by offset, so a rewritten shard would be read wrongly.
        """
        for name, digest in self.manifest["headers"].items():
            shard = self.weights / name
            if not shard.is_file():
                raise PackageError(
                    f"{shard}: missing; the exported graphs read their weights from it. Restore "
                    f"it or export again."
                )
            sample = (self.manifest.get("samples") or {}).get(name)
            if header_digest(shard) != digest or sample not in (None, sample_digest(shard)):
                raise PackageError(f"{shard}: changed since the export. Export again.")
        if self.read("config.json").values != self.manifest["config"]:
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
        """What distinguishes the checkpoint's family."""
        return TRAITS[self.config["model_type"]]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's directory: tokenizer and configurations."""
        return Path(self.manifest["checkpoint"])

    @property
    def weights(self) -> Path:
        """The folder of the shards."""
        return Path(self.manifest["weights"])

    @cached_property
    def preprocessor(self) -> Fields:
        """preprocessor_config.json of the checkpoint."""
        return self.read("preprocessor_config.json")

    @cached_property
    def video(self) -> VideoSettings | None:
        """The settings of the checkpoint's video processor; None for families without videos.

        As in transformers, the first of three files that is there has them: processor_config.json
        with an object for videos, video_preprocessor_config.json, preprocessor_config.json.

        Raises:
            PackageError: a setting is of another kind or out of range.
        """
        if not self.config["model_type"].startswith("qwen3_vl"):
            return None
        config, own = self.preprocessor, self.checkpoint / "video_preprocessor_config.json"
        if own.exists():
            config = self.read(own.name)
        if (self.checkpoint / "processor_config.json").exists():
            whole = self.read("processor_config.json")
            config = whole.inner(VIDEO_KEY) if VIDEO_KEY in whole else config
        for key in ("patch_size", "temporal_patch_size"):
            config.integer(key, self.vision[key], self.vision[key], self.vision[key])
        config.integer("merge_size", self.merge, self.merge, self.merge)
        return VideoSettings.of(config)

    @cached_property
    def generation(self) -> Fields:
        """generation_config.json of the checkpoint; empty where it has none."""
        path = self.checkpoint / "generation_config.json"
        return self.read(path.name) if path.exists() else Fields(path, {}, PackageError)

    @cached_property
    def tokens(self) -> Tokens:
        """Special tokens of the checkpoint's tokenizer, and its chat template."""
        return Tokens.read(self.checkpoint, PackageError)

    def read(self, name: str) -> Fields:
        """A JSON file of the checkpoint."""
        return Fields.read(self.checkpoint / name, PackageError)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table, as transformers resolved it."""
        return bool(self.manifest["tied"])

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
    def heads(self) -> int:
        """Query heads."""
        return int(self.text["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.text["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return int(self.text.get("head_dim") or self.text["hidden_size"] // self.heads)

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
        """Vision blocks whose activation contains a Sigmoid, which `silu` matches."""
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
    def pixels(self) -> tuple[int, int]:
        """Least and most pixels of a picture.

        Raises:
            PackageError: there are none, or none that a picture can have.
        """
        config = self.preprocessor
        size = config.inner("size") if "size" in config else config
        names = ("shortest_edge", "longest_edge")
        if not all(name in size for name in names):
            size, names = config, ("min_pixels", "max_pixels")
        if not all(name in size for name in names):
            raise PackageError(
                f"{config.file}: no size (shortest_edge and longest_edge, in pixels)."
            )
        least = size.integer(names[0], 1, MOST_PIXELS)
        return least, size.integer(names[1], least, MOST_PIXELS)

    @property
    def grid_side(self) -> int:
        """Most patches along one side of a picture or a frame: rows of the vision rotary table."""
        _, most = self.pixels
        if self.video is not None:
            most = max(most, self.video.most // 2)  # of two frames or more
        return math.ceil(math.sqrt(most * LONGEST_ASPECT) / int(self.vision["patch_size"]))


def read_manifest(raw: Path) -> dict[str, Any]:
    """The manifest of a raw export.

    Raises:
        PackageError: the directory is no raw export.
    """
    path = raw / "manifest.json"
    missing = f"{raw}: no raw export (manifest.json missing). Run python -m export_min first."
    manifest = read_json(path, PackageError, missing, limit=MANIFEST_BYTES)
    lacking = [key for key in MANIFEST if key not in manifest]
    if lacking:
        raise PackageError(f"{path}: no {lacking[0]!r}. Run python -m export_min again.")
    check_manifest(Fields(path, manifest, PackageError))
    return manifest


def check_manifest(manifest: Fields) -> None:
    """Check the kinds of what the manifest of a raw export holds.

    Raises:
        PackageError: a value is of another kind.
    """
    for key in ("source", "checkpoint", "weights"):
        manifest.text(key)
    headers = manifest.inner("headers")
    for name in headers.values:
        headers.text(name)
    if "samples" in manifest:
        manifest.inner("samples")
    manifest.inner("config")
    manifest.flag("tied")
    config = manifest.inner("resolved")
    if config.text("model_type") not in TRAITS:
        raise config.fault("model_type", f"one of {', '.join(TRAITS)}")
    text, vision = config.inner("text_config"), config.inner("vision_config")
    for part, keys in (
        (text, ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")),
        (text, ("num_key_value_heads", "max_position_embeddings")),
        (vision, ("depth", "patch_size", "spatial_merge_size", "temporal_patch_size")),
    ):
        for key in keys:
            part.integer(key, 1, (1 << 31) - 1)
