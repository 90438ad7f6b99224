"""Packages for a GPU: built, compared with PyTorch, and timed beside the builder's.

    python tests/bench/gpu.py WORK [-e cuda] [--model 2B] [--layers N] [--rounds 3]

For a machine with a GPU, whose onnxruntime-genai is the one for it (surgery/docs/troubleshooting.md
says which). Two parts, one command:

    exact   the demo's packages for the provider are verified, and answer 557 questions beside
            PyTorch on the CPU: share of equal answers, KL divergence of the next token
    fast    a checkpoint of random weights in a published shape, ours in float16 and INT4 beside
            `onnxruntime_genai.models.builder -e PROVIDER`: tokens a second of a prompt and of
            decoding, and times the builder's of the same precision, taken round by round

Everything found is kept in `gpu.json`. `-e cpu` runs the same on a CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
from make_checkpoint import MODELS
from rich.console import Console
from rich.table import Table
from runtime import GENAI, REPORT, ROOT, prepare, run

PROVIDERS = {"cuda": "is_cuda_available", "dml": "is_dml_available", "cpu": ""}
"""What onnxruntime-genai says of each; it can always run on a CPU."""
PRECISIONS = {"cuda": ("fp16", "int4"), "dml": ("fp16", "int4"), "cpu": ("fp32", "int4")}


def main() -> None:
    """Run both parts, print their tables and write `gpu.json`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder for checkpoints and packages; kept")
    p.add_argument("-e", "--provider", choices=PROVIDERS, default="cuda")
    p.add_argument("--model", choices=MODELS, default="2B")
    p.add_argument("--layers", type=int, help="decoder layers; all of the published ones")
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    asked = PROVIDERS[args.provider]
    if asked and not getattr(og, asked, lambda: False)():
        sys.exit(
            f"gpu.py: onnxruntime-genai {og.__version__} here has no {args.provider}; install the "
            f"package for it, or try the command with -e cpu."
        )
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = {"exact": exact(work, args.provider), "fast": fast(work, args)}
    (work / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def exact(work: Path, provider: str) -> dict[str, Any]:
    """Agreement with PyTorch by precision, and whether `verify` finds fault."""
    raw, found = work / "demo-raw", {}
    surgery = [sys.executable, "-m", "surgery"]
    if not raw.exists():
        run([sys.executable, "-m", "export_min", "-o", str(raw)], work)
    table = Table(title=f"the demo, -e {provider}, beside PyTorch in float32")
    for heading in ("", "same answers", "KL", "verify"):
        table.add_column(heading, justify="right" if heading else "left")
    for precision in PRECISIONS[provider]:
        package, kept = work / f"demo-{precision}", work / f"demo-{precision}.json"
        if not package.exists():
            words = ["-i", str(raw), "-o", str(package), "-e", provider, "-t", precision]
            run([*surgery, *words], work)
        run([*surgery, "eval", str(package), "--against", "demo", "--json", str(kept)], work)
        figures = json.loads(kept.read_text(encoding="utf-8"))["kinds"]["all"]
        words = [*surgery, "verify", str(package), "--checkpoint", "demo"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        sound = "sound" if done.returncode == 0 else done.stdout[-300:]
        found[precision] = {"verify": sound, **figures}
        table.add_row(precision, f"{figures['agreement']:.1%}", f"{figures['kl']:.1e}", sound)
    Console(width=100).print(table)
    return found


def fast(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of ours and the builder's, by precision."""
    prepare(work, args.model, args.layers)
    packages = {}
    for precision in PRECISIONS[args.provider]:
        ours, theirs = work / f"ours-{precision}", work / f"builder-{precision}"
        packages |= {f"ours, {precision}": ours, f"builder, {precision}": theirs}
        if not ours.exists():
            words = [sys.executable, "-m", "surgery", "-i", str(work / "raw"), "-o", str(ours)]
            run([*words, "-e", args.provider, "-t", precision], work)
        if not theirs.exists():
            words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", precision]
            words += ["-e", args.provider, "-i", str(work / "twin"), "-o", str(theirs)]
            run([*words, "-c", str(work / "cache")], work)
    rounds: dict[str, list[list[float]]] = {name: [] for name in packages}
    for turn in range(args.rounds):
        for name, package in packages.items():
            words = [sys.executable, "-c", GENAI + REPORT, str(package)]
            words += [str(args.prompt), str(args.tokens), ""]
            out = subprocess.run(words, capture_output=True, check=True, text=True).stdout
            rounds[name].append(json.loads(out.splitlines()[-1]))
            print(turn, name, rounds[name][-1], flush=True)
    table = Table(title=f"{args.model} on {args.provider}, tokens a second (x builder)")
    for heading in ("", "prefill", "decoding", "load s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, mine in rounds.items():
        base = rounds[name.replace("ours", "builder")]
        cells = []
        for at in (0, 1):
            ratio = statistics.median(a[at] / b[at] for a, b in zip(mine, base, strict=True))
            cells.append(f"{statistics.median(a[at] for a in mine):.1f} ({ratio:.2f})")
        table.add_row(name, *cells, f"{statistics.median(a[2] for a in mine):.1f}")
    Console(width=100).print(table)
    return rounds


if __name__ == "__main__":
    main()
