"""Each configuration is exported and built once; every test reads the same directories."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnxruntime_genai as og
import pytest
from case import Case
from PIL import Image
from tiny_checkpoint import TINY, write_checkpoint

from export_min import export
from surgery.answer.runtime import Prompt, Runtime
from surgery.base.demo import DEMO
from surgery.base.pictures import png

logging.getLogger("torch.__trace").propagate = False  # a record a traced node, kept by pytest

CASES = ("demo", *TINY)
DEEP = ("demo", *(n for n, tiny in TINY.items() if "deepstack_visual_indexes" in tiny.vision))
"""Those with DeepStack."""


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
