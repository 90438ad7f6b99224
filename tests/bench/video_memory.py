"""Peak of anonymous memory until the first token of an answer about a video, by its length.

    python tests/bench/make_checkpoint.py ck --model 2B --layers 2 --vision-layers 4
    python tests/bench/video_memory.py PACKAGE [--frames 4 16 64 256] [--side 448]

Each figure is a fresh process that loads the package and reads a prompt. `text` is a prompt of text
with as many tokens: what cache, embedding and prefill take. `runs` is the video as it is answered,
`at once` the same with all frames in one run of the vision graph. In brackets stands how much more
than `text` each takes, as a multiple of the pixels that the graph gets, in float32. Frames are
noise, made when they are read, and made smaller where the package's bound on pixels asks for it.
The published bound comes from a `video_preprocessor_config.json` beside the checkpoint, with "size"
{"longest_edge": 25165824, "shortest_edge": 4096}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from first_token import QUESTION, ROOT, TOKENS
from measure import measure

from surgery.answer import runtime as answering
from surgery.base.frames import Frames

KINDS = ("text", "at once", "runs")


def main() -> None:
    """Print a line for each number of frames, or answer once where `--once` says so."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("package", type=Path)
    p.add_argument("--frames", type=int, nargs="+", default=[4, 16, 64, 256])
    p.add_argument("--side", type=int, default=448, help="pixels along a side of a frame")
    p.add_argument("--most", type=float, help="patches of a run, in place of the program's own")
    p.add_argument("--once", choices=KINDS, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.once:
        print(json.dumps(once(args)))
        return
    table = Table(title=f"anonymous GB at the peak (x pixels), {args.side} x {args.side}")
    for heading in ("frames", "tokens", "pixels", *KINDS, "at once, s", "runs, s"):
        table.add_column(heading, justify="right")
    for count in args.frames:
        table.add_row(str(count), *line(args, count))
    Console().print(table)


def line(args: argparse.Namespace, count: int) -> list[str]:
    """Cells of a number of frames, each kind from a process of its own."""
    found, peaks = {}, {}
    for kind in KINDS:
        words = [sys.executable, __file__, str(args.package), "--frames", str(count)]
        words += ["--side", str(args.side), "--once", kind]
        words += ["--most", str(args.most)] if args.most else []
        with tempfile.TemporaryFile("w+") as out:
            result = measure(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out)
            out.seek(0)
            if result.code:
                sys.exit(f"{count} frames, {kind}: failed")
            found[kind] = json.loads(out.read().splitlines()[-1])
        peaks[kind] = result.anonymous / 1e9
        print(count, kind, found[kind], f"{peaks[kind]:.2f} GB", flush=True)
    pixels = found["runs"]["pixels"] / 1e9
    more = {kind: (peaks[kind] - peaks["text"]) / pixels for kind in KINDS[1:]}
    memory = [f"{peaks[kind]:.2f} ({more[kind]:.1f})" for kind in KINDS[1:]]
    seconds = [f"{found[kind]['seconds']:.1f}" for kind in KINDS[1:]]
    return [
        f"{found['runs']['tokens']:,}",
        f"{pixels:.3f}",
        f"{peaks['text']:.2f}",
        *memory,
        *seconds,
    ]


def once(args: argparse.Namespace) -> dict[str, float]:
    """Tokens of the prompt, bytes of its pixels, and seconds until there is a token."""
    if args.once == "at once":
        answering.MOST_AT_ONCE = math.inf
    elif args.most:
        answering.MOST_AT_ONCE = args.most
    runtime = answering.Runtime(args.package)
    rng = np.random.default_rng(0)

    def read(positions: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        for _ in positions:
            yield rng.integers(0, 256, (args.side, args.side, 3), np.uint8)

    clip = runtime.clip(Frames(Path("noise"), args.frames[0], None, read))
    if args.once == "text":
        short = runtime.prompt(runtime.ask(QUESTION)).length
        length = short + len(clip.seconds) * clip.tokens
        prompt = runtime.prompt(runtime.ask(QUESTION + " a" * (length - short)))
    else:
        prompt = runtime.prompt(runtime.ask(QUESTION, [clip]), [clip])
    start = time.perf_counter()
    next(iter(runtime.generate(prompt, TOKENS, answering.GREEDY)))
    seconds = time.perf_counter() - start
    return {"tokens": prompt.length, "pixels": 4 * clip.frames.size, "seconds": seconds}


if __name__ == "__main__":
    main()
