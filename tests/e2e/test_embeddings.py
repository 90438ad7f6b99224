"""Packages for embeddings and rerankers: the last hidden states through onnxruntime-genai."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.answer.runtime import Runtime
from surgery.base.errors import PackageError
from surgery.engine.options import Options

SIZES = {"text only": [], "one": [(128, 64)], "two different": [(64, 128), (160, 96)]}


@pytest.fixture(scope="module", params=["fp32", "int4"])
def package(request, demo):
    options = Options(text_precision=request.param, max_length=4096, hidden_states=True)
    return request.param, demo.build(f"hidden-{request.param}", options)


@pytest.mark.parametrize("kind", SIZES)
def test_hidden_states_are_pytorchs(demo, package, kind):
    precision, folder = package
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES[kind]]
    reference, runtime = demo.reference, Runtime(folder)
    inputs = reference.inputs(reference.chat("which is it?", len(pictures)), pictures)
    with torch.no_grad():
        reference.model.model.rope_deltas = None
        want = reference.model.model(**inputs).last_hidden_state[0].numpy()
    prompt = runtime.prompt(runtime.ask("which is it?", len(pictures)), pictures)
    got = runtime.hidden_states(prompt)
    assert got.shape == want.shape
    if precision == "fp32":
        assert abs(got - want).max() < 1e-4
    ours, theirs = got[-1], want[-1]
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    print(f"{precision}: max difference {abs(got - want).max():.1e}, cosine {cosine:.6f}")
    assert cosine > (0.99999 if precision == "fp32" else 0.97)


def test_a_package_without_them_says_how_to_get_them(demo):
    runtime = Runtime(demo.fp32)
    with pytest.raises(PackageError, match="--hidden-states"):
        runtime.hidden_states(runtime.prompt(runtime.ask("hello")))
