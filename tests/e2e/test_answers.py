"""The fp32 package in onnxruntime-genai says what PyTorch says, pictures of all kinds included."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from surgery.runtime import GREEDY

QUESTION = "what color is the shape?"
TOLERANCE = 1e-4

SIZES = {
    "text only": [],
    "one": [(128, 128)],
    "two equal": [(96, 96), (96, 96)],
    "two different": [(64, 128), (160, 96)],
    "five mixed": [(128, 96), (64, 160), (96, 96), (64, 64), (192, 64)],
    "portrait": [(96, 256)],
    "landscape": [(320, 96)],
    "smallest": [(32, 32)],
    "1,000 patches": [(640, 416)],
}
"""Width and height of the pictures of a prompt."""


def noise(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("kind", SIZES)
def test_tokens_and_logits_are_pytorchs(case, own, kind):
    steps = 64
    pictures, reference, runtime = noise(SIZES[kind]), case.reference, case.endless
    inputs = reference.inputs(reference.chat(QUESTION, len(pictures)), pictures)
    prompt = own(runtime, runtime.ask(QUESTION, len(pictures)), pictures)
    assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
    answer = reference.generate(inputs, steps, stop=False)
    assert list(runtime.generate(prompt, steps, GREEDY)) == answer.tokens
    difference = abs(runtime.follow(prompt, answer.tokens) - answer.logits).max()
    print(f"max|dlogit| {difference:.1e} of {abs(answer.logits).max():.1f}")
    assert difference < TOLERANCE


def test_deepstack_matters_to_these_weights(case):
    """Else the comparison above would prove less than it seems to."""
    reference, pictures = case.reference, noise([(128, 128)])
    inputs = reference.inputs(reference.chat(QUESTION, 1), pictures)
    visual = reference.model.model.visual
    with_it = reference.generate(inputs, 1, stop=False).logits
    hook = visual.register_forward_hook(without_deepstack)
    try:
        without = reference.generate(inputs, 1, stop=False).logits
    finally:
        hook.remove()
    assert abs(with_it - without).max() > 100 * TOLERANCE


def without_deepstack(module, args, output):
    output.deepstack_features = [feature * 0 for feature in output.deepstack_features]
    return output


@pytest.mark.parametrize("size", [(80, 336), (48, 80), (112, 144), (240, 400), (720, 1280)])
def test_sizes_that_the_runtime_rounds_otherwise(demo, size):
    """`Runtime.prompt` brings the picture to Hugging Face's grid before the runtime sees it."""
    (picture,) = noise([size])
    reference, runtime = demo.reference, demo.endless
    inputs = reference.inputs(reference.chat(QUESTION, 1), [picture])
    prompt = runtime.prompt(runtime.ask(QUESTION, 1), [picture])
    grid = prompt.tensors["image_grid_thw"].as_numpy()
    assert grid.tolist() == inputs["image_grid_thw"].tolist()
    pixels = prompt.tensors["pixel_values"].as_numpy()
    np.testing.assert_allclose(pixels, inputs["pixel_values"].numpy(), atol=1e-6)
