"""Prefill, decoding, load and memory of finished packages, beside other runtimes' models.

    python tests/bench/runtime.py WORK [--model 2B] [--layers N] [--rounds 3] [--only NAME ...]

A checkpoint of random weights in a published shape is made once, with a text-only twin of the same
weights for tools that know no Qwen3-VL. Every contender is built from them by its own tool:

    ours              `python -m export_min && python -m surgery`, with several options
    builder           `onnxruntime_genai.models.builder`, by default and in its fastest form
    llama.cpp         convert_hf_to_gguf.py and its quantizer, where `--llama-*` name them
    openvino          optimum-intel and OpenVINO GenAI, where `--optimum-cli` names it

onnxruntime-genai takes half the logical cores unless a package says otherwise, as ours do; the rows
"all cores" give the builder's packages the same session options.

Each round runs the contenders in turn, each in a fresh process: load, one prompt to warm up, a
prompt of `--prompt` tokens, then `--tokens` tokens one by one. The table has the medians of the
rounds, and ratios to the builder's default taken round by round. `GB a token` is what the matrices
of decoder and head take; `bandwidth` is what decoding reads of it a second, over what a plain pass
over a large array reads in the same run. Nothing else may run on the machine meanwhile. Random
weights time like trained ones and say nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from make_checkpoint import MODELS, make_checkpoint
from peers import CONVERT, QUANTIZE
from rich.console import Console
from rich.table import Table
from text_twin import make_twin

ROOT = Path(__file__).resolve().parents[2]
BASE = "builder, default"
ALL_CORES = json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 0}}}})

GENAI = """
import json, sys, time
import numpy as np, onnxruntime_genai as og
folder, prompt, tokens, overlay = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
start = time.perf_counter()
config = og.Config(folder)
if overlay:
    config.overlay(overlay)
model = og.Model(config)
load = time.perf_counter() - start
ids = np.random.default_rng(0).integers(1000, 30000, prompt).astype(np.int32)
def run():
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=prompt + tokens + 8, min_length=prompt + tokens + 4,
                              do_sample=False)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(ids)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(tokens):
        generator.generate_next_token()
    return first - start, time.perf_counter() - first
run()
"""
LLAMA = """
import json, os, sys, time
import numpy as np, llama_cpp
path, prompt, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
threads = os.cpu_count()
start = time.perf_counter()
model = llama_cpp.Llama(path, n_ctx=prompt + tokens + 8, n_batch=prompt, n_ubatch=prompt,
                        n_threads=threads, n_threads_batch=threads, verbose=False)
load = time.perf_counter() - start
ids = np.random.default_rng(0).integers(1000, 30000, prompt).tolist()
def run():
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    first = time.perf_counter()
    for token in ids[:tokens]:
        model.eval([token])
    return first - start, time.perf_counter() - first
run()
"""
OPENVINO = """
import json, sys, time
import numpy as np, openvino, openvino_genai
path, prompt, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
pipe = openvino_genai.LLMPipeline(path, "CPU")
load = time.perf_counter() - start
rng = np.random.default_rng(0)
def run():
    ids = rng.integers(1000, 30000, (1, prompt))  # it would take a known prompt from its cache
    mask = openvino.Tensor(np.ones_like(ids))
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), mask)
    found = pipe.generate(inputs, max_new_tokens=tokens + 1, ignore_eos=True, do_sample=False)
    metrics = found.perf_metrics
    return metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3 * tokens
run()
"""
REPORT = """
prefill, decode = run()
status = open("/proc/self/status").read()
memory = [int(status.split(f"{key}:")[1].split()[0]) * 1024 / 1e9 for key in ("RssAnon", "VmRSS")]
print(json.dumps([prompt / prefill, tokens / decode, load, *memory]))
"""


@dataclass(frozen=True)
class Contender:
    """A model to run.

    Attributes:
        name: in the table.
        path: what its runtime opens.
        build: the commands that make it.
        code: what runs it; prints prefill and decoding in tokens a second, seconds of loading,
            and anonymous and resident GB.
        python: the interpreter that has its runtime.
    """

    name: str
    path: Path
    build: list[list[str]]
    code: str = GENAI + REPORT
    python: str = sys.executable
    overlay: str = ""
    """Laid over the configuration of a package for onnxruntime-genai."""

    def read_a_token(self) -> float:
        """GB of matrices that one step of decoding reads."""
        if self.path.is_file():
            return self.path.stat().st_size / 1e9
        if (self.path / "openvino_model.bin").exists():
            return (self.path / "openvino_model.bin").stat().st_size / 1e9
        config = json.loads((self.path / "genai_config.json").read_text(encoding="utf-8"))
        decoder = self.path / config["model"]["decoder"]["filename"]
        graph = onnx.load(decoder, load_external_data=False).graph
        read = {
            name
            for node in nodes_of(graph)
            if node.op_type == "MatMulNBits"
            for name in node.input[1:4]
        }
        return sum(nbytes(t) for t in graph.initializer if t.name in read) / 1e9


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def main() -> None:
    """Build what is missing, run the rounds, print the table and write `runtime.json`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder for checkpoints and models; kept")
    p.add_argument("--model", choices=MODELS, default="2B")
    p.add_argument(
        "--layers", type=int, help="decoder layers, all of the published ones by default"
    )
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", action="append", help="contenders whose name contains this")
    p.add_argument("--llama-convert", type=Path, help="convert_hf_to_gguf.py in llama.cpp's source")
    p.add_argument("--llama-python", type=Path, help="a python with llama_cpp and transformers")
    p.add_argument("--optimum-cli", type=Path, help="of an environment with OpenVINO GenAI")
    args = p.parse_args()
    work = args.work.resolve()
    chosen = [
        one
        for one in contenders(work, args)
        if one.name == BASE or not args.only or any(text in one.name for text in args.only)
    ]
    prepare(work, args.model, args.layers)
    for one in chosen:
        build(one, work)
    rounds: dict[str, list[list[float]]] = {one.name: [] for one in chosen}
    bandwidth = []
    for turn in range(args.rounds):
        bandwidth.append(read_speed())
        for one in chosen:
            words = [one.python, "-c", one.code, str(one.path), str(args.prompt), str(args.tokens),
                     one.overlay]  # fmt: skip
            out = subprocess.run(words, capture_output=True, check=True, text=True).stdout
            rounds[one.name].append(json.loads(out.splitlines()[-1]))
            print(turn, one.name, rounds[one.name][-1], flush=True)
    report(chosen, rounds, max(bandwidth), work)


def contenders(work: Path, args: argparse.Namespace) -> list[Contender]:
    """Every model, by what makes it."""
    raw, twin = work / "raw", work / "twin"
    ours = {
        "ours, default": [],
        "ours, whole head in 8 bits": ["--shortlist", "0"],
        "ours, prompts in 8 bits": ["--prefill", "int8"],
        "ours, 4.5 bits": ["--bits", "4.5"],
        "ours, 4.28 bits": ["--bits", "4.29"],
        "ours, 4.28 bits, 4-bit head": ["--bits", "4.29", "--head-bits", "4"],
        "ours, sym b128 as the builder's fastest": [
            *("--bits", "4.26", "--symmetric", "--head-bits", "4")
        ],
        "ours, sym b32 as the builder's": [
            *("--bits", "5", "--block-size", "32", "--symmetric", "--head-bits", "4")
        ],
    }
    found = [
        Contender(name, work / name.replace(" ", "-"), [
            [sys.executable, "-m", "surgery", "-i", str(raw), "-o",
             str(work / name.replace(" ", "-")), *options]])
        for name, options in ours.items()
    ]  # fmt: skip
    for name in ("ours, prompts in 8 bits", "ours, default"):
        place = next(i for i, one in enumerate(found) if one.name == name)
        plain, mapped = found[place].path, work / f"{name},-prepacked".replace(" ", "-")
        command = [sys.executable, "-m", "surgery", "prepack", str(plain), "-o", str(mapped)]
        found.insert(place + 1, Contender(f"{name}, prepacked", mapped, [command]))
    builders = {
        BASE: [],
        "builder, blocks of 128, last logits": ["block_size=128", "prune_lm_head=true"],
    }
    for name, extra in builders.items():
        path = work / name.replace(" ", "-")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(twin)]
        command += ["-o", str(path), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
        commands = [command + (["--extra_options", *extra] if extra else [])]
        found.append(Contender(name, path, commands))
        found.append(Contender(f"{name}, all cores", path, commands, overlay=ALL_CORES))
    if args.llama_convert and args.llama_python:
        python, wide = str(args.llama_python), work / "wide.gguf"
        for name, kind in (("llama.cpp Q4_0", "Q4_0"), ("llama.cpp Q4_K_M", "Q4_K_M")):
            path = work / f"{kind}.gguf"
            convert = [python, "-c", CONVERT, str(args.llama_convert), str(twin)]
            convert += ["--outtype", "bf16", "--outfile", str(wide)]
            quantize = QUANTIZE.replace("MOSTLY_Q4_0", f"MOSTLY_{kind}")
            commands = [convert, [python, "-c", quantize, str(wide), str(path)]]
            found.append(Contender(name, path, commands, LLAMA + REPORT, python))
    if args.optimum_cli:
        path = work / "openvino"
        command = [str(args.optimum_cli), "export", "openvino", "--model", str(twin), "--task"]
        command += ["text-generation-with-past", "--weight-format", "int4", "--sym"]
        command += ["--group-size", "128", "--ratio", "1.0", str(path)]
        python = str(args.optimum_cli.parent / "python")
        found.append(
            Contender("openvino, groups of 128", path, [command], OPENVINO + REPORT, python)
        )
    return found


def prepare(work: Path, model: str, layers: int | None) -> None:
    """The checkpoint, its text-only twin and the raw export, where they are missing."""
    checkpoint, twin, raw = work / "checkpoint", work / "twin", work / "raw"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, model, layers=layers)
    if not twin.exists():
        make_twin(checkpoint, twin)
    if not raw.exists():
        run([sys.executable, "-m", "export_min", "-i", str(checkpoint), "-o", str(raw)], work)


def build(one: Contender, work: Path) -> None:
    """Make a model that is not there yet."""
    if one.path.exists():
        return
    start = time.perf_counter()
    for words in one.build:
        run(words, work)
    print(f"{one.name}: built in {time.perf_counter() - start:.1f} s", flush=True)


def run(words: list[str], work: Path) -> None:
    """A command; its words are shown where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words[:6])} ... failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor, by its shape."""
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims)) * itemsize


def read_speed() -> float:
    """GB a second that all cores read of an array far larger than the caches; the best of five."""
    cores = os.cpu_count() or 1
    parts = np.array_split(np.ones(1 << 27, np.uint64), cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = max(best, (1 << 30) / 1e9 / (time.perf_counter() - start))
    return best


def report(
    chosen: list[Contender], rounds: dict[str, list[list[float]]], bandwidth: float, work: Path
) -> None:
    """Print medians and ratios, and keep every figure."""
    table = Table(title=f"{os.cpu_count()} cores, reads {bandwidth:.1f} GB/s; median, (x {BASE})")
    for heading in ("", "GB a token", "prefill /s", "decode /s", "bandwidth", "load s",
                    "anonymous GB", "resident GB"):  # fmt: skip
        table.add_column(heading, justify="right" if heading else "left")
    kept = {}
    for one in chosen:
        figures = list(zip(*rounds[one.name], strict=True))
        prefill, decode, load, anonymous, resident = map(statistics.median, figures)
        ratios = [
            statistics.median(
                mine[at] / base[at]
                for mine, base in zip(rounds[one.name], rounds[BASE], strict=True)
            )
            for at in (0, 1)
        ]
        size = one.read_a_token()
        table.add_row(
            one.name,
            f"{size:.3f}",
            f"{prefill:.1f} ({ratios[0]:.2f})",
            f"{decode:.1f} ({ratios[1]:.2f})",
            f"{size * decode / bandwidth:.0%}",
            f"{load:.1f}",
            f"{anonymous:.2f}",
            f"{resident:.2f}",
        )
        kept[one.name] = {"gb_a_token": size, "ratios": ratios, "rounds": rounds[one.name]}
    Console(width=130).print(table)
    result = {"read_gb_s": bandwidth, "contenders": kept}
    (work / "runtime.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
