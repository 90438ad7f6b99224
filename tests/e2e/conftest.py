"""Each configuration is exported and built once; every test reads the same directories."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnxruntime_genai as og
import pytest
from PIL import Image
from tiny_checkpoint import TINY, write_checkpoint

from export_min import export, open_checkpoint
from export_min.reference import Reference
from surgery.answer.runtime import Prompt, Runtime
from surgery.base.demo import DEMO
from surgery.base.pictures import png
from surgery.engine.options import Options
from surgery.jobs.build import build

logging.getLogger("torch.__trace").propagate = False  # a record a traced node, kept by pytest

CASES = ("demo", *TINY)
DEEP = ("demo", *(n for n, tiny in TINY.items() if "deepstack_visual_indexes" in tiny.vision))
"""Those with DeepStack."""


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

    def build(self, name: str, options: Options) -> Path:
        return build(self.raw, self.folder / name, options)

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


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A case by name, made when first asked for."""
    made: dict[str, Case] = {}

    def find(name: str) -> Case:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            source = None if name == "demo" else write_checkpoint(TINY[name], folder / "checkpoint")
            made[name] = Case(name, source or DEMO, export(source, folder / "raw"), folder)
        return made[name]

    return find


@pytest.fixture(scope="session")
def demo(cases: Callable[[str], Case]) -> Case:
    return cases("demo")


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Every configuration in turn."""
    return cases(request.param)


@pytest.fixture(scope="session", params=DEEP)
def deep(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Every configuration with DeepStack in turn."""
    return cases(request.param)


def own_prompt(runtime: Runtime, text: str, pictures: list[Image.Image]) -> Prompt:
    """A prompt whose pictures the runtime's own processor resizes and normalizes."""
    images = og.Images.open_bytes(*[png(p) for p in pictures]) if pictures else None
    tensors = runtime.processor(text, images=images)
    return Prompt(tensors, tensors["input_ids"].as_numpy().reshape(-1).copy())


@pytest.fixture(scope="session")
def own() -> Callable[[Runtime, str, list[Image.Image]], Prompt]:
    return own_prompt
