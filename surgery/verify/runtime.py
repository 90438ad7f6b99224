"""Check that the package generates tokens in onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from surgery.answer.runtime import GREEDY, ON_CPU, Runtime
from surgery.base.errors import PackageError, first_line
from surgery.base.pictures import Sizing
from surgery.verify.finding import Finding
from surgery.verify.opened import Opened

STEPS = 4
QUESTION = "What is in the picture?"


def check_runtime(package: Opened) -> Iterator[Finding]:
    """Generate a few tokens for a text, for a picture and for two pictures."""
    try:
        runtime = open_runtime(package)
        yield runs_on(package)
        for count in (0, 1, 2):
            pictures = sample(runtime.sizing, count)
            prompt = runtime.prompt(runtime.ask(QUESTION, count), pictures)
            made = list(runtime.generate(prompt, STEPS, GREEDY))
            yield Finding(
                f"answer about {count} pictures", f"{prompt.length} tokens in, {len(made)} out"
            )
    except (PackageError, RuntimeError) as e:
        if package.provider == "cpu":
            yield Finding("answers", problem=first_line(e))
        else:
            yield Finding("answers", f"not run: built for {package.provider}: {first_line(e)}")


def open_runtime(package: Opened) -> Runtime:
    """Open the package in onnxruntime-genai.

    It runs on the CPU, whatever provider it was built for, or on a plugin that is installed.
    """
    return Runtime(package.folder, ON_CPU if package.replaced else None)


def runs_on(package: Opened) -> Finding:
    """Where the package runs, and why not on its own provider."""
    if package.replaced:
        return Finding("runs on", f"cpu: {package.replaced}")
    return Finding("runs on", package.provider)


def sample(sizing: Sizing, count: int) -> list[Image.Image]:
    """Return pictures of random pixels and different sizes."""
    rng = np.random.default_rng(2)
    sizes = [(6 - i, 4 + i) for i in range(count)]
    return [
        Image.fromarray(rng.integers(0, 256, (h * sizing.unit, w * sizing.unit, 3), np.uint8))
        for w, h in sizes
    ]
