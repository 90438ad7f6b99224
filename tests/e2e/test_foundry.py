"""Packages in Foundry Local: the unmodified SDK says what onnxruntime-genai says here.

It runs in a process and a virtual environment of its own. tests/foundry/README.md has the command
that installs what it needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.answer.runtime import GREEDY, Runtime
from surgery.base.demo import DEMO
from surgery.base.pictures import open_picture, png

ROOT = Path(__file__).resolve().parents[2]
ASK = ROOT / "tests" / "foundry" / "ask.py"
PAGE = ROOT / "surgery" / "docs" / "foundry_local.md"
QUESTION = "where is the green rectangle?"
STEPS = 24
LIMIT = 300
"""Seconds."""


@dataclass(frozen=True)
class Asked:
    """A package, its pictures by what a prompt shows, and Foundry Local's answers by the same."""

    runtime: Runtime
    pictures: dict[str, list[Image.Image]]
    answers: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has the SDK; without it the tests are skipped."""
    folder = Path(os.environ.get("FOUNDRY_LOCAL", ROOT / "build" / "foundry"))
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not found.exists():
        pytest.skip(f"{folder}: no foundry-local-sdk; see tests/foundry/README.md")
    return found.absolute()


def run(words: list[str], folder: Path) -> str:
    """What a program printed that ended well within the limit."""
    # libraries in PYTHONPATH are of other versions
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=LIMIT, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module", params=["fp32", "int4"])
def asked(request, python, demo, tmp_path_factory) -> Asked:
    """Every conversation in one process a package."""
    place = tmp_path_factory.mktemp("foundry")
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    shapes = open_picture(DEMO / "images" / "shapes.png")
    pictures = {"one": [shapes], "none": [], "two": [Image.fromarray(noise), shapes]}
    conversations = {}
    for kind, shown in pictures.items():
        files = [place / f"{kind}_{i}.png" for i in range(len(shown))]
        for file, picture in zip(files, shown, strict=True):
            file.write_bytes(png(picture))
        conversations[kind] = [{"text": QUESTION, "pictures": [str(file) for file in files]}]
    (first,) = conversations["one"]
    conversations["client"] = [{**first, "client": True}]
    conversations["follow-up"] = [first, {"text": QUESTION, "pictures": []}]
    package = getattr(demo, request.param)
    wanted = {"package": str(package.resolve()), "steps": STEPS}
    wanted["conversations"] = list(conversations.values())
    (place / "request.json").write_text(json.dumps(wanted), encoding="utf-8")
    said = run([str(python), str(ASK), str(place / "request.json")], place)
    answers = json.loads(said.splitlines()[-1])
    return Asked(Runtime(package), pictures, dict(zip(conversations, answers, strict=True)))


@pytest.mark.parametrize("kind", ["one", "none", "two"])
def test_answers_are_those_of_onnxruntime_genai(asked, kind):
    """The same prompt, token for token as far as its length shows, and the same greedy answer."""
    runtime, shown = asked.runtime, asked.pictures[kind]
    prompt = runtime.prompt(runtime.ask(QUESTION, shown), shown)
    tokens = list(runtime.generate(prompt, STEPS, GREEDY))
    (found,) = asked.answers[kind]
    print(f"{kind}: {found}")
    assert found["prompt"] == prompt.length
    assert found["text"] == runtime.text(tokens)
    assert 0 < found["answer"] <= len(tokens)


def test_the_picture_decides_the_answer(asked):
    assert asked.answers["one"][0]["text"] == "bottom left"
    assert asked.answers["none"][0]["text"] != "bottom left"


@pytest.mark.parametrize("kind", ["client", "follow-up"])
def test_where_pictures_get_lost_without_a_word(asked, kind):
    """Limits of the SDK that surgery/docs/foundry_local.md tells: no picture is in the prompt."""
    shown = asked.runtime.prompt(asked.runtime.ask(QUESTION, 1), asked.pictures["one"])
    assert asked.answers["one"][0]["prompt"] == shown.length
    assert asked.answers[kind][-1]["prompt"] < shown.length


def test_the_program_on_the_page(python, demo, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "cpu-int4").symlink_to(demo.int4.resolve(), target_is_directory=True)
    (tmp_path / "export_min").symlink_to(ROOT / "export_min", target_is_directory=True)
    assert run([str(python), "-c", code], tmp_path).splitlines()[-1] == "bottom left"
