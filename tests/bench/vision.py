"""The vision tower of finished packages beside PyTorch's, on one picture of several sizes.

    python tests/bench/vision.py WORK [--model 2B] [--sides 24 48 64] [--rounds 3] [--skip NAME]

A checkpoint of random weights in a published shape is made once, in bfloat16. From it come a
package with `-p fp32` (weights stay bfloat16, products are float32), one as built by default
(products of 8-bit integers), and one with 8 bits in blocks of 128, multiplied by `MatMulNBits`, as
other targets have it; the CPU runs it, too.
PyTorch runs the tower of transformers with `attn_implementation="sdpa"`, in float32 and in
bfloat16, without gradients. "Bare products" are the tower's matrix products alone, in float32 by
PyTorch, without weights to read, norms or softmax: what is left to gain at that precision.

Each round runs the contenders in turn, each in a fresh process on all cores: one picture of
side x side patches to warm up, then once more. The table has medians of the seconds, and how
many times as fast as PyTorch in float32, taken round by round; `anonymous` is the memory of the
process itself after the largest picture. `mix` is one call with one picture of each size. Nothing
else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from make_checkpoint import MODELS, make_checkpoint
from runtime import run

BASE = "PyTorch, float32"
OURS = {
    "ours, -p fp32": ["-p", "fp32"],
    "ours, default": [],
    "ours, blocks of 8 bits": ["-p", "int8", "--for", "transformers.js"],
}
"""Packages by name, and the options of `python -m surgery`."""

COMMON = """
import json, sys, time
import numpy as np
path, sides = sys.argv[1], json.loads(sys.argv[2])
rng = np.random.default_rng(0)
def inputs(sides):
    grid = np.array([[1, side, side] for side in sides], np.int64)
    return rng.standard_normal((int(grid.prod(1).sum()), 1536), np.float32), grid
def own():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024 / 1e9
"""
ONNXRUNTIME = """
import onnxruntime as ort
options, each = ort.SessionOptions(), ort.RunOptions()
entries, run_entries = json.loads(sys.argv[3])
for key, value in entries.items():
    options.add_session_config_entry(key, value)
for key, value in run_entries.items():
    each.add_run_config_entry(key, value)
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def forward(pixels, grid):
    session.run(None, {"pixel_values": pixels, "image_grid_thw": grid}, each)
"""
PYTORCH = """
import torch
from transformers import AutoModelForImageTextToText
dtype = getattr(torch, sys.argv[3])
model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
tower = model.model.visual.eval()
del model
def forward(pixels, grid):
    with torch.inference_mode():
        tower(torch.from_numpy(pixels).to(dtype), grid_thw=torch.from_numpy(grid))
"""
BARE = """
import torch
config = json.load(open(path + "/config.json"))["vision_config"]
width, inner, heads = (config[k] for k in ("hidden_size", "intermediate_size", "num_heads"))
layers = [torch.randn(a, b) for a, b in ((width, 3 * width), (width, width), (width, inner))]
def forward(pixels, grid):
    x, up = torch.randn(len(pixels), width), torch.randn(len(pixels), inner)
    for _ in range(config["depth"]):
        for layer in layers:
            x @ layer
        up @ layers[2].T
        for side in grid[:, 1]:
            q = torch.randn(heads, side * side, width // heads)
            for head in q:
                (head @ head.T) @ head
"""
MEASURE = """
times = []
for picture in [[side] for side in sides] + [sides]:
    feed = inputs(picture)
    forward(*feed)
    start = time.perf_counter()
    forward(*feed)
    times.append(time.perf_counter() - start)
print(json.dumps([times, own()]))
"""


def main() -> None:
    """Build what is missing, run the rounds, print the table and write `vision.json`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder for the checkpoint and the packages; kept")
    p.add_argument("--model", choices=MODELS, default="2B")
    p.add_argument("--sides", type=int, nargs="+", default=[24, 48, 64], help="patches a side")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--skip", action="append", default=[], help="part of a contender's name")
    args = p.parse_args()
    work = args.work.resolve()
    if not (work / "checkpoint").exists():
        make_checkpoint(work / "checkpoint", args.model)
    if not (work / "raw").exists():
        words = ["export_min", "-i", str(work / "checkpoint"), "-o", str(work / "raw")]
        run([sys.executable, "-m", *words], work)
    contenders = {BASE: (PYTORCH, work / "checkpoint", "float32")}
    contenders["PyTorch, bfloat16"] = (PYTORCH, work / "checkpoint", "bfloat16")
    contenders["bare products"] = (BARE, work / "checkpoint", "")
    for name, options in OURS.items():
        package = work / name.replace(" ", "-")
        if not package.exists():
            words = [sys.executable, "-m", "surgery", "-i", str(work / "raw"), "-o", str(package)]
            run([*words, *options], work)
        contenders[name] = (ONNXRUNTIME, *graph(package))
    for name in [name for name in contenders if any(word in name for word in args.skip)]:
        del contenders[name]
    rounds: dict[str, list[tuple[list[float], float]]] = {name: [] for name in contenders}
    for turn in range(args.rounds):
        for name, (code, path, extra) in contenders.items():
            words = [sys.executable, "-c", COMMON + code + MEASURE, str(path)]
            words += [json.dumps(args.sides), extra]
            out = subprocess.run(words, capture_output=True, check=True, text=True).stdout
            rounds[name].append(json.loads(out.splitlines()[-1]))
            print(turn, name, rounds[name][-1], flush=True)
    report(rounds, [f"{side**2:,}" for side in args.sides] + ["mix"])
    (work / "vision.json").write_text(json.dumps(rounds, indent=1), encoding="utf-8")


def graph(package: Path) -> tuple[Path, str]:
    """The vision graph of a package, and the options of session and runs that it asks for."""
    if not (package / "genai_config.json").is_file():  # made for transformers.js
        return next((package / "onnx").glob("vision_encoder*.onnx")), "[{}, {}]"
    config = json.loads((package / "genai_config.json").read_text(encoding="utf-8"))
    section = config["model"]["vision"]
    options = section.get("session_options", {})
    entries = {key: value for key, value in options.items() if "." in key}
    return package / section["filename"], json.dumps([entries, section.get("run_options", {})])


def report(rounds: dict[str, list[tuple[list[float], float]]], sizes: list[str]) -> None:
    """Print medians and ratios."""
    table = Table(title=f"seconds of a picture of N patches (times as fast as {BASE})")
    for heading in ("", *sizes, "anonymous GB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in rounds.items():
        cells = []
        for at in range(len(sizes)):
            median = statistics.median(times[at] for times, _ in found)
            ratio = statistics.median(
                base[at] / mine[at]
                for (mine, _), (base, _) in zip(found, rounds[BASE], strict=True)
            )
            cells.append(f"{median:.2f} ({ratio:.2f})")
        table.add_row(name, *cells, f"{statistics.median(own for _, own in found):.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
