"""One loaded package under load: memory stays flat, and answers are those of a fresh start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Runtime, Sampling
from surgery.base.demo import DEMO
from surgery.base.pictures import open_picture
from surgery.engine.options import Options

CONVERSATIONS, WARM = 20, 6
GROWTH = 16 << 20
"""Bytes that the process may grow once it is warm: caches of the allocator, not of turns."""
MAX_TOKENS = 6

STATUS = Path("/proc/self/status")


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    line = next(text for text in STATUS.read_text().splitlines() if text.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def turns(number: int) -> list[tuple[str, list[Image.Image]]]:
    """The user's turns of a conversation: text, one picture, several, in changing order."""
    files = sorted((DEMO / "images").glob("*.png"))
    pictures = [open_picture(path) for path in files]
    plain: tuple[str, list[Image.Image]] = ("how many shapes are there?", [])
    one = ("what color is the shape?", [pictures[number % len(pictures)]])
    several = ("which picture has the circle?", pictures)
    order = [plain, one, several]
    return order[number % 3 :] + order[: number % 3]


def held(runtime: Runtime, number: int) -> list[str]:
    """The answers of a conversation of two turns."""
    conversation = Conversation(runtime, Sampling(temperature=0), MAX_TOKENS)
    return ["".join(conversation.say(*turn)) for turn in turns(number)[:2]]


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_twenty_conversations(demo) -> None:
    """Text, one and several pictures in turn; each is answered as in a package just opened."""
    fresh = {kind: held(Runtime(demo.int4), kind) for kind in range(3)}
    runtime = Runtime(demo.int4)
    warm = 0
    for number in range(CONVERSATIONS):
        answers = held(runtime, number)
        if number < 3:
            assert answers == fresh[number]
        if number == WARM:
            warm = anonymous()
    assert held(runtime, 0) == fresh[0], "the twenty-first differs from a fresh one"
    assert anonymous() - warm < GROWTH, f"grew by {(anonymous() - warm) / 1e6:.0f} MB"


@pytest.mark.nightly
def test_a_picture_of_sixteen_megapixels(demo) -> None:
    """The picture is shrunk to what the checkpoint allows, and answered about."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (40, 40, 3), np.uint8)
    picture = Image.fromarray(blocks).resize((4000, 4000))
    runtime = Runtime(demo.int4)
    prompt = runtime.prompt(runtime.ask("what color is the shape?", 1), [picture])
    assert 1 <= len(list(runtime.generate(prompt, 4, GREEDY))) <= 4


@pytest.mark.nightly
def test_a_prompt_of_thirty_thousand_tokens(demo) -> None:
    """A prompt as long as the context of the default package allows."""
    runtime = Runtime(demo.build("long", Options()))
    words = "how many shapes are there? " * 20_000
    ids = runtime.tokenizer.encode(words)[:30_000]
    prompt = runtime.prompt(runtime.ask(runtime.text(list(ids))))
    assert prompt.length > 29_000
    assert len(list(runtime.generate(prompt, 2, GREEDY))) >= 1
