"""An int4 package computes what unpacking its weights says."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest

from export_min import open_checkpoint
from export_min.reference import Reference
from surgery.answer.runtime import Runtime
from surgery.package.genai_config import DECODER
from surgery.rewrite.float_activations import float_activations
from surgery.verify.opened import Opened
from surgery.verify.rounding import every, unpacked
from surgery.verify.runtime import QUESTION, sample

INT8_ACTIVATIONS = 5e-2
"""Of the largest logit: accuracy level 4 rounds activations to int8 before every product."""
FLOAT_ACTIVATIONS = 1e-5
"""The same weights, activations in float."""


@pytest.fixture(scope="module", params=["demo", "qwen2_5", "experts", "some experts"])
def built(request, cases):
    """The second has biases on queries, keys and values, and an untied head; others, experts."""
    return cases(request.param)


@pytest.fixture(scope="module")
def reference(built):
    """PyTorch with the unpacked weights."""
    made = Reference(open_checkpoint(built.checkpoint))
    made.replace(unpacked(Opened(built.int4)))
    return made


@pytest.fixture(scope="module")
def exact(built):
    """The package with float products."""
    folder = built.folder / "int4-in-float"
    folder.mkdir()
    for path in built.int4.iterdir():
        if path.suffix != ".onnx":
            shutil.copyfile(path, folder / path.name)
            continue
        model = ir.load(path)
        float_activations(model)
        ir.save(model, folder / path.name)
    return folder


def differences(package, reference, count):
    """For each step of PyTorch's answer, the difference of its logits, of the largest logit."""
    runtime = Runtime(package)
    pictures = sample(runtime.sizing, count)
    inputs = reference.inputs(reference.chat(QUESTION, count), pictures)
    answer = reference.generate(inputs, 16, stop=False)
    prompt = runtime.prompt(runtime.ask(QUESTION, count), pictures)
    logits = runtime.follow(prompt, answer.tokens)
    return abs(logits - answer.logits).max(-1) / abs(answer.logits).max()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_default_package_within_the_rounding_of_activations(built, reference, count):
    steps = differences(built.int4, reference, count)
    # rounding chooses other experts at some steps, where two are nearly as good
    found = np.median(steps) if "experts" in built.name else max(steps)
    print(f"max|dlogit| / max|logit| {found:.1e}")
    assert found < INT8_ACTIVATIONS


@pytest.mark.parametrize("count", [0, 1, 2])
def test_float_products_are_exact(exact, reference, count):
    found = max(differences(exact, reference, count))
    print(f"max|dlogit| / max|logit| {found:.1e}")
    assert found < FLOAT_ACTIVATIONS


def deviation(weight, original, block):
    """How far a quantized weight is from the original, by block and as a whole.

    Returns:
        The largest difference within a block, of the largest number of that block; and the length
        of the weight along the original, 1 where no scale is off.
    """
    pad = [(0, 0)] * (original.ndim - 1) + [(0, -original.shape[-1] % block)]
    ours, theirs = (np.pad(a, pad).reshape(-1, block) for a in (weight, original))
    largest = abs(theirs).max(-1)
    used = largest > 0
    error = (abs(ours - theirs).max(-1)[used] / largest[used]).max()
    return error, (ours * theirs).sum() / (theirs * theirs).sum()


def test_quantized_weights_are_near_the_originals(built):
    """No number is off by more than a step, and scales are neither too large nor too small."""
    own = built.reference.model.state_dict()
    for found in every(Opened(built.int4)):
        name, weight, form = found.name, found.weight(), found.blocks.format
        rows = name.startswith("model.visual.")  # which have one scale each
        block = weight.shape[-1] if rows else form.block
        original = own[name].float().numpy()
        assert weight.shape == original.shape
        step = 2 / form.max_code  # a block spans twice its largest number at most
        error, length = deviation(weight, original, block)
        assert error < 1.01 * step, name
        assert abs(length - 1) < 0.01, name
        for wrong in (0.98, 1.02):
            moved = deviation(wrong * weight, original, block)[1]
            assert abs(moved - 1) > 0.01, "would not be noticed"
        spoiled = weight.copy()
        spoiled.reshape(-1)[:block] *= 1 + 4 * step
        assert deviation(spoiled, original, block)[0] > 1.01 * step, "would not be noticed"


def test_the_card_says_how_it_was_quantized(built):
    """From the attributes of the graph, not from the options."""
    nodes = [n for n in ir.load(built.int4 / DECODER).graph if n.op_type == "MatMulNBits"]
    *layers, head = nodes
    eight = sum(node.attributes["bits"].as_int() == 8 for node in layers)
    bits, block = (head.attributes[name].as_int() for name in ("bits", "block_size"))
    card = (built.int4 / "README.md").read_text()
    assert f"{eight} of {len(layers)} matrices have 8 bits" in card
    assert f"The head has {bits} bits in blocks of {block}" in card
