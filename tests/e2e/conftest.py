"""Each configuration is exported and built once; every test reads the same directories."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime_genai as og
import pytest
from case import Case
from filelock import FileLock
from PIL import Image
from tiny_checkpoint import TINY, write_checkpoint

from export_min import export
from surgery.answer.runtime import Prompt, Runtime
from surgery.base.demo import DEMO
from surgery.base.pictures import png

ROOT = Path(__file__).resolve().parents[2]
CASES = ("demo", *TINY)
DEEP = ("demo", *(n for n, tiny in TINY.items() if "deepstack_visual_indexes" in tiny.vision))
"""Those with DeepStack."""


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A case by name, made when first asked for; the processes of pytest-xdist share its files."""
    made: dict[str, Case] = {}
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cases"

    def find(name: str) -> Case:
        if name not in made:
            folder, checkpoint = base / name, DEMO if name == "demo" else base / name / "checkpoint"
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "raw.lock"):
                if name != "demo" and not checkpoint.is_dir():
                    write_checkpoint(TINY[name], checkpoint)
                if not (folder / "raw").is_dir():
                    export(None if name == "demo" else checkpoint, folder / "raw")
            made[name] = Case(name, checkpoint, folder / "raw", folder)
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


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder with node_modules; without it the tests are skipped."""
    folder = Path(os.environ.get("TRANSFORMERS_JS", ROOT / "build" / "web"))
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip(f"{folder}: no @huggingface/transformers; see tests/web/README.md")
    return folder.resolve()


def own_prompt(runtime: Runtime, text: str, pictures: list[Image.Image]) -> Prompt:
    """A prompt whose pictures the runtime's own processor resizes and normalizes."""
    images = og.Images.open_bytes(*[png(p) for p in pictures]) if pictures else None
    tensors = runtime.processor(text, images=images)
    return Prompt(tensors, tensors["input_ids"].as_numpy().reshape(-1).copy())


@pytest.fixture(scope="session")
def own() -> Callable[[Runtime, str, list[Image.Image]], Prompt]:
    return own_prompt
