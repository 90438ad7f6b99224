"""A package whose cache of keys and values is stored in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from surgery.__main__ import main
from surgery.answer.runtime import GREEDY, Runtime
from surgery.base.errors import UserError
from surgery.calibrate.ranges import lengths
from surgery.engine.options import Options
from surgery.jobs import cache
from surgery.verify import verify_package
from surgery.verify.opened import Opened
from surgery.verify.runtime import QUESTION, sample

INT8 = Options(text_precision="fp32", kv_cache="int8", max_length=4096)
NEAR = 0.03
"""Largest difference of log probabilities from those with a float cache, over their spread."""


@pytest.fixture(scope="session", autouse=True)
def kept(tmp_path_factory):
    """Ranges of this module are kept in a folder of its own."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cache.with_ranges, "__defaults__", (tmp_path_factory.mktemp("kept"),))
    yield
    patch.undo()


@pytest.fixture(scope="session", params=["demo", "qwen2_5 windows"])
def each(request, cases):
    """A trained checkpoint, and Qwen2.5-VL with random weights."""
    return cases(request.param)


@pytest.fixture(scope="session")
def package(each):
    return each.build("kv-int8", INT8)


def answers(package, tokens=None):
    """Tokens of an answer about two pictures, and the logits behind each."""
    runtime = Runtime(package)
    prompt = runtime.prompt(runtime.ask(QUESTION, 2), sample(runtime.sizing, 2))
    if tokens is None:
        tokens = list(runtime.generate(prompt, 24, GREEDY))
    return tokens, runtime.follow(prompt, tokens)


def test_logits_are_near_those_of_a_float_cache(each, package):
    """Through the runtime, along one answer about two pictures."""
    tokens, wanted = answers(each.fp32)
    _, found = answers(package, tokens)
    off = np.abs(found - wanted).max() / (wanted.max() - wanted.min())
    print(f"{each.name}: {off:.2e} of the spread of the logits")
    assert 1e-6 < off < NEAR


def test_every_cache_is_int8(each, package):
    graph = Opened(package).graphs["decoder"].graph
    cached = [v for v in (*graph.inputs, *graph.outputs) if "past" in v.name or "present" in v.name]
    assert len(cached) == 4 * each.reference.config.text_config.num_hidden_layers
    assert {value.dtype for value in cached} == {ir.DataType.INT8}


def test_verify_takes_it(each, package):
    report = verify_package(package, each.checkpoint)
    assert report.ok, report


def test_a_turn_that_goes_on_is_as_a_fresh_one(demo):
    """The cache is cut back to where the prompt ended, and goes on from there."""
    package = demo.build("kv-int8", INT8)
    runtime = Runtime(package)
    first = runtime.prompt(runtime.ask(QUESTION, 1), sample(runtime.sizing, 1))
    again = [list(runtime.generate(first, 12, GREEDY)) for _ in range(2)]
    assert again[0] == again[1] == list(Runtime(package).generate(first, 12, GREEDY))


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
