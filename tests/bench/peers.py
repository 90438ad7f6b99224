"""Other tools that turn the same checkpoint into 4 bits, each a list of commands.

    llama.cpp   convert_hf_to_gguf.py to bf16, the vision tower apart (--mmproj), then Q4_0
    openvino    optimum-cli export openvino, INT4 symmetric in groups of 128
    builder     onnxruntime-genai's own, decoder alone

They live in environments of their own, since each wants another transformers. llama.cpp's script
comes with its source (the sdist of llama-cpp-python holds one), its quantizer with the package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONVERT = """
import runpy, sys
from pathlib import Path
folder = Path(sys.argv[1]).parent
sys.path[:0] = [str(folder), str(folder / "gguf-py")]
from conversion.base import TextModel
# It knows tokenizers by a hash of their output; that of a random checkpoint is not among them.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
QUANTIZE = """
import os, sys
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, os.cpu_count()
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


@dataclass(frozen=True)
class Peer:
    """A tool, its steps, and what is left when they are done."""

    name: str
    makes: str
    missing: str
    """Why it cannot run here; empty where it can."""
    steps: dict[str, list[str]]
    waste: tuple[Path, ...] = ()
    """Files that only lead to the result."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Where the tools are."""
    p.add_argument("--peers", action="store_true", help="llama.cpp, OpenVINO and the builder too")
    p.add_argument("--llama-convert", type=Path, help="convert_hf_to_gguf.py in llama.cpp's source")
    p.add_argument("--llama-python", type=Path, help="a python with llama_cpp and transformers")
    p.add_argument("--optimum-cli", type=Path, help="optimum-cli with optimum-intel")


def peers(args: argparse.Namespace, checkpoint: Path, work: Path) -> Iterator[Peer]:
    """Every tool, writing to `work / name`."""
    out = work / "llama.cpp"
    script = ["-c", CONVERT, str(args.llama_convert), str(checkpoint), "--outtype", "bf16"]
    wide, vision, final = (out / f"{name}.gguf" for name in ("wide", "mmproj", "q4_0"))
    python = str(args.llama_python)
    yield Peer(
        "llama.cpp",
        "text Q4_0, vision bf16",
        lacking({"--llama-convert": args.llama_convert, "--llama-python": args.llama_python}),
        {
            "convert": [python, *script, "--outfile", str(wide)],
            "mmproj": [python, *script, "--mmproj", "--outfile", str(vision)],
            "quantize": [python, "-c", QUANTIZE, str(wide), str(final)],
        },
        (wide,),
    )
    command = [str(args.optimum_cli), "export", "openvino", "--model", str(checkpoint)]
    command += ["--task", "image-text-to-text", "--weight-format", "int4", "--sym"]
    command += ["--group-size", "128", "--ratio", "1.0", str(work / "openvino")]
    yield Peer(
        "openvino",
        "text INT4, vision as the tool chooses",
        lacking({"--optimum-cli": args.optimum_cli}),
        {"export": command},
    )
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
    command += ["-o", str(work / "builder"), "-p", "int4", "-e", "cpu", "-c", "/nonexistent"]
    command += ["--extra_options", "exclude_embeds=true"]
    yield Peer("builder", "text INT4, no vision, no embedding", "", {"build": command})


def lacking(tools: dict[str, Path | None]) -> str:
    """The options that are left out or lead nowhere."""
    return ", ".join(o for o, path in tools.items() if path is None or not path.exists())
