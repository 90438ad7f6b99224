"""A package whose cache of keys and values is stored in 8 bits."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from test_session import DIFFERENCE, hold, pictures

from surgery.__main__ import main
from surgery.answer.runtime import GREEDY, Runtime
from surgery.base.errors import UserError
from surgery.calibrate.ranges import lengths
from surgery.engine.options import Options
from surgery.jobs import cache
from surgery.jobs.build import build
from surgery.verify import verify_package
from surgery.verify.opened import Opened
from surgery.verify.runtime import QUESTION, sample

INT8 = Options(text_precision="fp32", kv_cache="int8", max_length=4096)
NEAR = 0.03
"""Largest difference of log probabilities from those with a float cache, over their spread."""


@pytest.fixture(scope="session", autouse=True)
def kept(tmp_path_factory):
    """Ranges of this module are kept in a folder of its own."""
    folder = tmp_path_factory.mktemp("kept")
    patch = pytest.MonkeyPatch()
    patch.setattr(cache.with_ranges, "__defaults__", (folder,))
    yield folder
    patch.undo()


@pytest.fixture(scope="session", params=["demo", "qwen2_5 windows"])
def built(request, cases):
    """A trained checkpoint, and Qwen2.5-VL with random weights."""
    return cases(request.param)


@pytest.fixture(scope="session")
def package(built):
    return built.build("kv-int8", INT8)


def answers(package, tokens=None):
    """Tokens of an answer about two pictures, and the logits behind built."""
    runtime = Runtime(package)
    prompt = runtime.prompt(runtime.ask(QUESTION, 2), sample(runtime.sizing, 2))
    if tokens is None:
        tokens = list(runtime.generate(prompt, 24, GREEDY))
    return tokens, runtime.follow(prompt, tokens)


def test_logits_are_near_those_of_a_float_cache(built, package):
    """Through the runtime, along one answer about two pictures."""
    tokens, wanted = answers(built.fp32)
    _, found = answers(package, tokens)
    off = np.abs(found - wanted).max() / (wanted.max() - wanted.min())
    print(f"{built.name}: {off:.2e} of the spread of the logits")
    assert 1e-6 < off < NEAR


def test_every_cache_is_int8(built, package):
    graph = Opened(package).graphs["decoder"].graph
    cached = [v for v in (*graph.inputs, *graph.outputs) if "past" in v.name or "present" in v.name]
    assert len(cached) == 4 * built.reference.config.text_config.num_hidden_layers
    assert {value.dtype for value in cached} == {ir.DataType.INT8}


def test_verify_takes_it(built, package):
    report = verify_package(package, built.checkpoint)
    assert report.ok, report


def test_a_turn_that_goes_on_is_as_a_fresh_one(demo):
    """The cache is cut back by a token and goes on; a new generator reads the whole prompt."""
    runtime = Runtime(demo.build("kv-int8", INT8))
    worst, lengths, went_on = hold(runtime, pictures(demo, 1), (5, 5, 5))
    assert went_on[1:] == [True, True] and all(lengths)
    assert worst <= DIFFERENCE


def test_verify_sees_scales_that_clip(demo, tmp_path, capsys):
    """Of the keys of one layer."""
    package = shutil.copytree(demo.build("kv-int8", INT8), tmp_path / "package")
    path = Opened(package).path("decoder")
    model = onnx.load(path, load_external_data=False)
    (scale,) = (t for t in model.graph.initializer if t.name == "past_key_values.1.key.scale")
    numbers = onnx.numpy_helper.to_array(scale) * np.float32(0.25)
    scale.CopyFrom(onnx.numpy_helper.from_array(numbers, scale.name))
    onnx.save(model, path)
    words = ["verify", str(package), "--no-digests", "--checkpoint", "demo"]
    assert main(words) == 1
    assert "logits" in capsys.readouterr().out


def test_verify_sees_a_fault_that_rounding_would_hide(demo, tmp_path, capsys):
    """With a cache in float the decoder is held to what that of any fp32 package is held to."""
    package = shutil.copytree(demo.build("kv-int8", INT8), tmp_path / "package")
    path = Opened(package).path("decoder")
    model = onnx.load(path, load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    (scale,) = (a for a in node.attribute if a.name == "scale")
    scale.f = (scale.f or demo.reference.config.text_config.head_dim**-0.5) * 1.001
    onnx.save(model, path)
    words = ["verify", str(package), "--no-digests", "--checkpoint", "demo"]
    assert main(words) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert failed and all("cache in float" in line for line in failed)


def test_steps_are_checked_on_both_sides_of_it(demo, capsys):
    """A run of single passes measures ranges, too; what comes after is compared with int8 codes."""
    words = ["-i", str(demo.raw), "--kv-cache", "int8", "-t", "fp32", "--max-length", "4096"]
    assert main([*words, "--check-steps", "--graph", "decoder"]) == 0
    lines = capsys.readouterr().err.splitlines()
    (at,) = (i for i, line in enumerate(lines) if " quantized_cache " in line)
    assert "not checked: from here on the cache is rounded" in lines[at]
    later = [line for line in lines[at + 1 :] if line.startswith("decoder")]
    assert later and all("checked: " in line for line in later)


def test_broken_ranges_are_measured_again(demo, tmp_path, kept, capsys):
    """A file that was cut is said, and the package is the same."""
    package = demo.build("kv-int8", INT8)
    files = list(kept.rglob(cache.FILE))
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    again = build(demo.raw, tmp_path / "again", INT8)
    assert files and "cannot be used" in capsys.readouterr().err.replace("\n", " ")
    assert (package / "model.onnx").read_bytes() == (again / "model.onnx").read_bytes()


def test_the_second_build_is_equal_and_samples_nothing(demo, tmp_path, monkeypatch, capsys):
    package = demo.build("kv-int8", INT8)

    def never(*args):
        raise AssertionError("tokens were sampled again")

    monkeypatch.setattr(cache, "Sampler", never)
    words = ["-i", str(demo.raw), "-o", str(tmp_path / "again"), "--kv-cache", "int8", "-t", "fp32"]
    assert main([*words, "--max-length", "4096", "--quiet"]) == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (package / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_ranges_hold_at_every_position():
    """A rotary embedding turns pairs of channels: no angle takes a key out of its range."""
    keys = np.random.default_rng(0).standard_normal((1, 2, 5, 8)).astype(np.float32)
    ranges = lengths(keys).max((0, 2))
    for angle in np.linspace(0, 2 * np.pi, 50):
        a, b = keys[..., :4], keys[..., 4:]
        turned = np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
        )
        assert (np.abs(turned).max((0, 2)) <= ranges * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"execution_provider": "cuda"},
        {"execution_provider": "dml"},
        {"text_precision": "fp16"},
        {"runtime": "transformers.js"},
    ],
)
def test_where_no_kernel_reads_it_it_is_refused(options):
    with pytest.raises(UserError, match="--kv-cache int8: for packages for onnxruntime-genai"):
        Options(kv_cache="int8", **options)
