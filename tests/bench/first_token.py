"""Time to the first token of an answer about a picture, its parts, and that of a second turn.

    python tests/bench/first_token.py PACKAGE [--side 1024] [--rounds 3]

Each round is a fresh process on all cores, after an answer about a small picture to warm up:

    processing   the picture to patches, the prompt to tokens
    first token  vision tower, embedding and prefill, until there is a token
    text alone   the same for a prompt of text, scaled to as many tokens: what prefill takes
    second turn  a further question in the same conversation, to its first token
    afresh       the same question behind the same conversation, read from its start

The difference of `first token` and `text alone` is the picture itself. Nothing else may run
meanwhile. Random weights time like trained ones if the checkpoint was made with `--words`: other
answers do not come back from text as the same tokens, and the conversation is read from its start,
which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Prompt, Runtime, Sampling

ROOT = Path(__file__).resolve().parents[2]
QUESTION, MORE = "What is in this picture?", "And what else?"
TOKENS = 8
"""Tokens of an answer."""


def main() -> None:
    """Run the rounds and print the medians, or one round where `--once` says so."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("package", type=Path)
    p.add_argument("--side", type=int, default=1024, help="pixels along a side of the picture")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.once:
        print(json.dumps(once(args.package, args.side)))
        return
    rounds = []
    for turn in range(args.rounds):
        words = [sys.executable, __file__, str(args.package), "--side", str(args.side), "--once"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        out = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True, text=True)
        rounds.append(json.loads(out.stdout.splitlines()[-1]))
        print(turn, rounds[-1], flush=True)
    table = Table(title=f"seconds, a picture of {args.side} x {args.side}")
    table.add_column("")
    table.add_column("median", justify="right")
    for name in rounds[0]:
        table.add_row(name, f"{statistics.median(found[name] for found in rounds):.2f}")
    Console().print(table)


def once(package: Path, side: int) -> dict[str, float]:
    """Seconds of each part, tokens of the prompt, and GB of anonymous memory at its peak so far."""
    runtime = Runtime(package)
    rng = np.random.default_rng(0)

    def picture(size: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))

    def first(prompt: Prompt) -> float:
        start = time.perf_counter()
        next(iter(runtime.generate(prompt, TOKENS, GREEDY)))
        return time.perf_counter() - start

    first(runtime.prompt(runtime.ask(QUESTION, 1), [picture(128)]))
    large = picture(side)
    start = time.perf_counter()
    prompt = runtime.prompt(runtime.ask(QUESTION, 1), [large])
    processing = time.perf_counter() - start
    seconds = first(prompt)
    letters = runtime.prompt(runtime.ask(" a" * prompt.length))
    ratio = prompt.length / letters.length
    alone = first(letters) * ratio
    conversation = Conversation(runtime, Sampling(temperature=0), TOKENS)
    list(conversation.say(QUESTION, [large]))
    before = conversation.session.generator
    start = time.perf_counter()
    answer = conversation.say(MORE, [])
    next(answer)
    second = time.perf_counter() - start
    answer.close()
    if conversation.session.generator is not before:
        print("the second turn read the conversation from its start", file=sys.stderr)
    whole = runtime.chat([*conversation.messages[:2], {"role": "user", "content": MORE}])
    start = time.perf_counter()
    afresh = runtime.prompt(whole, [large])
    first(afresh)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e9
    return {
        "tokens": prompt.length,
        "processing": processing,
        "first token": seconds,
        "text alone": alone,
        "second turn": second,
        "afresh": time.perf_counter() - start,
        "anonymous GB": own,
    }


if __name__ == "__main__":
    main()
