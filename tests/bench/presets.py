"""What each preset of `--preset` takes at the 4B shape: time and memory, in fresh processes.

    python tests/bench/presets.py WORK [--model 4B] [--layers 3] [--llama-convert SCRIPT
        --llama-python PYTHON --llama-bin FOLDER --text FILE]

A checkpoint of random weights with a few layers is made, exported and built with each preset. A
calibrated preset is measured with 2 layers fewer, too, so that the time of a layer can be told
from that of the rest, and the time for all published layers extrapolated; memory is that of the
run measured. Seconds of a core hardly depend on what else runs. `best` differs from `balanced` by
its budget alone and takes the calibration of it.

With the four last options, llama.cpp does the same for the larger run: its `convert_hf_to_gguf.py`
under a Python that has transformers, `llama-imatrix` over as many tokens of a text as calibrate
here, and `llama-quantize` to Q4_K_M, both programs in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from make_checkpoint import MODELS, make_checkpoint
from measure import Measured, measure
from peers import CONVERT
from text_twin import make_twin

ROOT = Path(__file__).resolve().parents[2]
TOKENS, CHUNK = 8192, 512
"""Tokens that llama.cpp reads, and how many of them at a time."""


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder to work in; what was measured stays there")
    p.add_argument("--model", choices=MODELS, default="4B")
    p.add_argument("--layers", type=int, default=3, help="decoder layers of the larger run")
    p.add_argument("--llama-convert", type=Path, help="convert_hf_to_gguf.py in llama.cpp's source")
    p.add_argument("--llama-python", type=Path, help="a python with transformers and gguf")
    p.add_argument("--llama-bin", type=Path, help="folder of llama-imatrix and llama-quantize")
    p.add_argument("--text", type=Path, help="what llama-imatrix reads")
    args = p.parse_args()
    work = args.work.resolve()
    results: dict[tuple[str, int], Measured] = {}
    few = max(1, args.layers - 2)
    for layers in (few, args.layers):
        raw = prepare(work, args.model, layers)
        for preset in ("fast", "balanced", "best"):
            results[preset, layers] = build(work, raw, preset, layers)
    report(results, few, args.layers, MODELS[args.model][0][1])
    if all((args.llama_convert, args.llama_python, args.llama_bin, args.text)):
        llama(work, args)


def prepare(work: Path, model: str, layers: int) -> Path:
    """A raw export of a checkpoint with a few layers."""
    checkpoint, raw = work / f"checkpoint-{layers}", work / f"raw-{layers}"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, model, layers=layers, vision_layers=3)
    if not raw.exists():
        words = ["export_min", "-i", str(checkpoint), "-o", str(raw)]
        run(work, f"export-{layers}", words)
    return raw


def build(work: Path, raw: Path, preset: str, layers: int) -> Measured:
    """Build with a preset; the first calibrated one starts from nothing."""
    if preset == "balanced":
        shutil.rmtree(work / "build", ignore_errors=True)
    output = work / "package"
    shutil.rmtree(output, ignore_errors=True)
    words = ["surgery", "-i", str(raw), "-o", str(output), "--preset", preset]
    return run(work, f"{preset}-{layers}", words)


def llama(work: Path, args: argparse.Namespace) -> None:
    """What llama.cpp takes for a text-only model of the same matrices, from the checkpoint."""
    twin, wide = work / f"twin-{args.layers}", work / "wide.gguf"
    if not twin.exists():
        make_twin(work / f"checkpoint-{args.layers}", twin)
    convert = [args.llama_python, "-c", CONVERT, args.llama_convert, twin, "--outtype", "bf16",
               "--outfile", wide]  # fmt: skip
    matrix, chunks, cores = work / "imatrix.gguf", TOKENS // CHUNK, os.cpu_count()
    weigh = [args.llama_bin / "llama-imatrix", "-m", wide, "-f", args.text, "-o", matrix, "-c",
             CHUNK, "-b", CHUNK, "--chunks", chunks, "-t", cores, "--no-ppl"]  # fmt: skip
    rounded = [args.llama_bin / "llama-quantize", "--imatrix", matrix, wide, work / "Q4_K_M.gguf",
               "Q4_K_M", cores]  # fmt: skip
    for name, words in (("convert", convert), ("imatrix", weigh), ("quantize", rounded)):
        command(work, f"llama-{name}-{args.layers}", [*map(str, words)])


def run(work: Path, name: str, words: list[str]) -> Measured:
    """A module of this project in a fresh process, in the folder of this run."""
    return command(work, name, [sys.executable, "-m", *words])


def command(work: Path, name: str, words: list[str]) -> Measured:
    """A program in a fresh process, in the folder of this run."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (work / f"{name}.log").open("w") as log:
        found = measure(words, cwd=work, stdout=log, stderr=log, env=environment)
    memory = f"{found.anonymous / 1e9:.2f} GB"
    print(f"{name}: {found.seconds:.1f} s, {found.processor:.0f} s of a core, {memory}", flush=True)
    if found.code:
        sys.exit(f"{name} failed; its words are in {work / name}.log")
    return found


def report(results: dict[tuple[str, int], Measured], few: int, many: int, published: int) -> None:
    """A row for each preset."""
    table = Table(title=f"{os.cpu_count()} cores; from a raw export to the package")
    table.add_column("preset")
    for heading in (f"{few} layers, s", f"{many} layers, s", "a layer, s", "of a core, s",
                    "anonymous GB", f"extrapolated to {published} layers, min"):  # fmt: skip
        table.add_column(heading, justify="right")
    for preset in ("fast", "balanced", "best"):
        first, second = results[preset, few], results[preset, many]
        each = (second.seconds - first.seconds) / (many - few)
        whole = first.seconds + each * (published - few)
        core = (second.processor - first.processor) / (many - few)
        memory = second.anonymous / 1e9
        figures = (first.seconds, second.seconds, each, core, memory, whole / 60)
        table.add_row(preset, *map("{:.1f}".format, figures))
    console = Console(width=100)
    console.print(table)
    console.print("best takes the calibration of balanced; alone it takes as long as balanced")


if __name__ == "__main__":
    main()
