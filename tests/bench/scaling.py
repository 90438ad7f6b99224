"""How speed changes with the length of a prompt, the size of a picture, and cores: one plot.

    pip install matplotlib
    python tests/bench/scaling.py WORK [--model 2B] [--rounds 2] [--plot FILE.png]

WORK is the folder of an earlier run of `vision.py`; what it and `runtime.py` have built there is
used again. Ours as built by default stands beside onnxruntime-genai's builder with all cores
(blocks of 128, its fastest form), and beside PyTorch's vision tower with SDPA in float32.

    prefill      tokens a second, prompts of 128 to 2,048 tokens
    picture      seconds of the vision tower, as `vision.py` measured them
    cores        decoding, tokens a second behind 128 tokens, on 1 core and on all

Every point is the median of the rounds, each in a fresh process; rounds run the contenders in turn.
`scaling.json` keeps every figure. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from make_checkpoint import MODELS
from runtime import ALL_CORES, GENAI, REPORT, build, contenders, prepare
from vision import BASE

PROMPTS, SIDES = (128, 512, 1024, 2048), (24, 48, 64)
EXACT = "ours, -p fp32"
OURS, BUILDER = "ours, default", "builder, blocks of 128, last logits, all cores"
Points = dict[str, dict[int, float]]
"""Figures by contender and by the number on the x axis."""


def main() -> None:
    """Build what is missing, run the rounds, write the figures and draw them."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder for checkpoints and models; kept")
    p.add_argument("--model", choices=MODELS, default="2B")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--plot", type=Path, help="draw the figures into this file")
    args = p.parse_args()
    work = args.work.resolve()
    kept = work / "scaling.json"
    if not kept.exists():
        kept.write_text(json.dumps(measured(work, args.model, args.rounds), indent=1))
    figures = {
        panel: {name: {int(x): y for x, y in line.items()} for name, line in lines.items()}
        for panel, lines in json.loads(kept.read_text()).items()
    }
    for panel, lines in figures.items():
        for name, line in lines.items():
            print(f"{panel}: {name}: {line}")
    if args.plot:
        draw(figures, args.model, args.plot)


def measured(work: Path, model: str, rounds: int) -> dict[str, Points]:
    """The points of the three panels."""
    words = argparse.Namespace(llama_convert=None, llama_python=None, optimum_cli=None)
    chosen = {c.name: c for c in contenders(work, words) if c.name in (OURS, BUILDER)}
    prepare(work, model, None)
    for one in chosen.values():
        build(one, work)

    def text(name: str, prompt: int, tokens: int, cores: int | None = None) -> list[float]:
        one = chosen[name]
        overlay = {"intra_op_num_threads": cores or 0}
        section = json.dumps({"model": {"decoder": {"session_options": overlay}}})
        extra = [str(prompt), str(tokens), section if cores else one.overlay or ALL_CORES]
        pin = ["taskset", "-c", "0"] if cores else []
        found = told([*pin, sys.executable, "-c", GENAI + REPORT, str(one.path), *extra])
        return [float(number) for number in found]

    cores = os.cpu_count() or 1
    pictures = json.loads((work / "vision.json").read_text())
    return {
        "prefill": points(chosen, PROMPTS, rounds, lambda name, n: text(name, n, 4)[0]),
        "picture": {
            name: {
                side: statistics.median(times[at] for times, _ in pictures[name])
                for at, side in enumerate(SIDES)
            }
            for name in (OURS, EXACT, BASE)
        },
        "cores": points(chosen, (1, cores), rounds, lambda name, n: text(
            name, 128, 32, None if n == cores else n)[1]),
    }  # fmt: skip


def told(words: list[str]) -> list[object]:
    """What a process prints last."""
    out = subprocess.run(words, capture_output=True, check=True, text=True).stdout
    found: list[object] = json.loads(out.splitlines()[-1])
    return found


def points(
    names: Iterable[str], places: Iterable[int], rounds: int, figure: Callable[[str, int], float]
) -> Points:
    """Medians of the rounds."""
    names, found = list(names), {}
    for place in places:
        runs = [{name: figure(name, place) for name in names} for _ in range(rounds)]
        found[place] = {name: statistics.median(one[name] for one in runs) for name in names}
        print(place, found[place], flush=True)
    return {name: {place: found[place][name] for place in found} for name in names}


def draw(figures: dict[str, Points], model: str, path: Path) -> None:
    """Three panels in one PNG."""
    import matplotlib.pyplot as plt  # not needed to measure

    labels = {
        "prefill": ("prefill, tokens a second", "tokens of the prompt"),
        "picture": ("vision tower, seconds", "patches of the picture"),
        "cores": ("decoding, tokens a second", "cores"),
    }
    colours = {OURS: "#0b6e4f", EXACT: "#7fbf9f", BUILDER: "#c1666b"}
    drawing, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
    for axis, (panel, lines) in zip(axes, figures.items(), strict=True):
        for name, line in lines.items():
            places = [n**2 if panel == "picture" else n for n in line]
            label = name.replace("blocks of 128, last logits, all cores", "fastest form")
            colour = colours.get(name, "#666666")
            axis.plot(places, list(line.values()), "o-", label=label, color=colour, markersize=3)
        title, below = labels[panel]
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(below, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        if panel == "cores":
            axis.set_xticks(places)
    drawing.suptitle(f"Qwen3-VL-{model} shape, INT4, {os.cpu_count()} cores", fontsize=9)
    drawing.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
