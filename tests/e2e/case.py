"""A configuration of the end to end tests: its checkpoint, raw export, packages and PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from export_min import open_checkpoint
from export_min.reference import Reference
from surgery.answer.runtime import Runtime
from surgery.engine.options import Options
from surgery.jobs.build import build


@dataclass(frozen=True)
class Case:
    """A checkpoint, its raw export, its packages, and PyTorch."""

    name: str
    checkpoint: Path
    raw: Path
    folder: Path

    @cached_property
    def fp32(self) -> Path:
        """The fp32 package, as built."""
        return self.build("fp32", Options(text_precision="fp32", max_length=4096))

    @cached_property
    def int4(self) -> Path:
        """The package with default settings."""
        return self.build("int4", Options(max_length=4096))

    def browser(self, text: str = "fp32", precision: str = "fp32") -> Path:
        """A package for transformers.js."""
        options = Options(precision, text, runtime="transformers.js", max_length=4096)
        return self.build(f"js-{text}-{precision}", options)

    def build(self, name: str, options: Options) -> Path:
        """A package by its name, built when first asked for."""
        folder = self.folder / name
        with FileLock(f"{folder}.lock"):
            return folder if folder.is_dir() else build(self.raw, folder, options)

    @cached_property
    def endless(self) -> Runtime:
        """The fp32 package with an end token that never comes."""
        config = json.loads((self.fp32 / "genai_config.json").read_text())
        never = config["model"]["vocab_size"] - 1
        return Runtime(self.fp32, {"model": {"eos_token_id": never}})

    @cached_property
    def reference(self) -> Reference:
        return Reference(open_checkpoint(self.checkpoint))

    @property
    def levels(self) -> int:
        """DeepStack levels."""
        return len(getattr(self.reference.config.vision_config, "deepstack_visual_indexes", ()))

    @property
    def unit(self) -> int:
        """Pixels along a side of a token: sides that are multiples of it are left alone."""
        tower = self.reference.config.vision_config
        return int(tower.patch_size * tower.spatial_merge_size)
