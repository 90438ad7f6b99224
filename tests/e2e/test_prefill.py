"""A package whose prompts are multiplied by weights of their own, in 8 bits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from surgery.__main__ import main
from surgery.answer.profiling import profile
from surgery.answer.runtime import Runtime
from surgery.base.errors import UserError
from surgery.engine.options import Options
from surgery.rewrite.float_activations import INTEGER
from surgery.rewrite.two_forms import LENGTH, LONG
from surgery.verify import verify_package
from surgery.verify.opened import Opened
from surgery.verify.runtime import QUESTION, sample

INT8 = Options(prefill="int8", max_length=4096)
NEARER = 0.6
"""Distance to float logits right behind a prompt, over that of the package with 4 bits alone."""


@pytest.fixture(
    scope="session",
    params=[
        *("demo", "qwen2_5 windows"),
        pytest.param("untied", marks=pytest.mark.nightly),
        pytest.param("qwen2", marks=pytest.mark.nightly),
    ],
)
def built(request, cases):
    """A trained checkpoint, and random ones: with a sliding window, untied, of Qwen2-VL."""
    return cases(request.param)


@pytest.fixture(scope="session")
def package(built):
    return built.build("prefill-int8", INT8)


def first(package, count):
    """Logits right behind a prompt."""
    runtime = Runtime(package)
    prompt = runtime.prompt(runtime.ask(QUESTION, count), sample(runtime.sizing, count))
    assert prompt.length >= LENGTH
    return runtime.follow(prompt, [0])[0]


@pytest.mark.parametrize("count", [1, 2])
def test_behind_a_prompt_logits_are_nearer_to_float(built, package, count):
    """Through the runtime and its kernels, with one and with several pictures."""
    wanted = first(built.fp32, count)
    off = [np.linalg.norm(first(one, count) - wanted) for one in (package, built.int4)]
    print(f"{built.name}: {off[0] / np.linalg.norm(wanted):.4f}, {off[0] / off[1]:.2f} of 4 bits'")
    assert 0 < off[0] < NEARER * off[1]


def test_verify_takes_it(built, package):
    """Both forms of the decoder, each against PyTorch with the weights that it has."""
    report = verify_package(package, built.checkpoint)
    assert report.ok, report


def test_weights_of_prompts(built, package):
    """Every linear weight of the layers has both forms; the head has one."""
    config = built.reference.config.text_config
    model = Opened(package).graphs["decoder"]
    names = {
        op: [n.inputs[1].name for graph in model.graphs() for n in graph if n.op_type == op]
        for op in (INTEGER, "MatMulNBits")
    }
    long = {name.removesuffix(f"{LONG}.codes") for name in names[INTEGER]}
    short = {name.removesuffix(".packed") for name in names["MatMulNBits"]}
    assert len(long) == len(names[INTEGER]) == 7 * config.num_hidden_layers
    assert len(short - long) == 1 and not long - short
    listed = json.loads((package / "quantization.json").read_text(encoding="utf-8"))
    told = {row["name"] for row in listed["rounded"] if row["name"].endswith(LONG)}
    assert told == {f"{name}{LONG}" for name in long}


def test_an_answer_behind_a_prompt_goes_on_in_4_bits(demo):
    """By the runtime's own profile: integer products for the prompt, 4-bit ones token by token."""
    package = demo.build("prefill-int8", INT8)
    found = profile(package, QUESTION, sample(Runtime(package).sizing, 1), 4)
    weights = 7 * demo.reference.config.text_config.num_hidden_layers
    integer, blocks = found.ops[INTEGER], found.ops["MatMulNBits"]
    assert integer["prefill"].calls == weights and "decode" not in integer
    assert blocks["prefill"].calls == 1, "the head"
    assert blocks["decode"].calls % (weights + 1) == 0 and blocks["decode"].calls > 0


def test_verify_sees_a_weight_that_only_prompts_read(demo, tmp_path, capsys):
    """The scales of one matrix, 10 % too large."""
    package = shutil.copytree(demo.build("prefill-int8", INT8), tmp_path / "package")
    path = Opened(package).path("decoder")
    model = onnx.load(path, load_external_data=False)
    (scales,) = (
        t for t in model.graph.initializer if t.name.endswith(f"1.mlp.up_proj.weight{LONG}.scales")
    )
    place = {entry.key: entry.value for entry in scales.external_data}
    with (package / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        numbers = np.frombuffer(file.read(int(place["length"])), np.float32) * np.float32(1.1)
        file.seek(int(place["offset"]))
        file.write(numbers.tobytes())
    words = ["verify", str(package), "--no-digests", "--checkpoint", "demo"]
    assert main(words) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert any("up_proj" in line for line in failed)
    assert not any("short ones" in line for line in failed)


def test_steps_are_checked_in_both_forms(demo, capsys):
    """Each pass that quantizes is compared with dequantized weights of its own form alone."""
    words = ["-i", str(demo.raw), "--prefill", "int8", "--max-length", "4096"]
    assert main([*words, "--check-steps", "--graph", "decoder"]) == 0
    lines = capsys.readouterr().err.splitlines()
    for name in ("matmul_int8", "matmul_nbits"):
        (line,) = (line for line in lines if line.startswith("decoder") and f" {name} " in line)
        assert "differs by" in line and line.endswith("compared with dequantized weights")


@pytest.mark.parametrize(
    "options",
    [
        {"execution_provider": "cuda"},
        {"execution_provider": "dml"},
        {"text_precision": "fp32"},
        {"runtime": "transformers.js"},
    ],
)
def test_where_it_gains_nothing_it_is_refused(options):
    with pytest.raises(UserError, match="--prefill int8: for packages for onnxruntime-genai"):
        Options(prefill="int8", **options)


def test_experts_are_refused(cases, tmp_path, capsys):
    words = ["-i", str(cases("experts").raw), "-o", str(tmp_path / "package"), "--prefill", "int8"]
    assert main(words) == 2
    assert "for decoders without experts" in capsys.readouterr().err
