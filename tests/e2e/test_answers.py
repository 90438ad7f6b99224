"""The fp32 package in onnxruntime-genai says what PyTorch says, pictures of all kinds included."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from surgery.answer.runtime import GREEDY

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
"""Width and height of the pictures of a prompt, where a token has 32 pixels a side."""


def noise(sizes: list[tuple[int, int]], unit: int = 32) -> list[Image.Image]:
    """Pictures of as many tokens for any number of pixels a side of one."""
    rng = np.random.default_rng(0)
    shapes = [(h * unit // 32, w * unit // 32, 3) for w, h in sizes]
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


@pytest.mark.parametrize("kind", SIZES)
def test_tokens_and_logits_are_pytorchs(case, own, kind):
    steps = 16 if "experts" in case.name else 64  # which PyTorch asks one by one
    pictures, reference, runtime = noise(SIZES[kind], case.unit), case.reference, case.endless
    inputs = reference.inputs(reference.chat(QUESTION, len(pictures)), pictures)
    prompt = own(runtime, runtime.ask(QUESTION, len(pictures)), pictures)
    assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
    answer = reference.generate(inputs, steps, stop=False)
    assert list(runtime.generate(prompt, steps, GREEDY)) == answer.tokens
    difference = abs(runtime.follow(prompt, answer.tokens) - answer.logits).max()
    print(f"max|dlogit| {difference:.1e} of {abs(answer.logits).max():.1f}")
    assert difference < TOLERANCE


def test_deepstack_matters_to_these_weights(deep):
    """Else the comparison above would prove less than it seems to."""
    reference, pictures = deep.reference, noise([(128, 128)])
    inputs = reference.inputs(reference.chat(QUESTION, 1), pictures)
    visual = reference.model.model.visual
    with_it = reference.generate(inputs, 1, stop=False).logits
    hook = visual.register_forward_hook(without_deepstack)
    try:
        without = reference.generate(inputs, 1, stop=False).logits
    finally:
        hook.remove()
    assert abs(with_it - without).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_5", "qwen2_5 windows"])
def test_windows_matter_to_these_weights(cases, name):
    """As above; where all blocks attend to whole frames, the answer is another."""
    reference = cases(name).reference
    inputs = reference.inputs(reference.chat(QUESTION, 1), noise([(128, 128)], cases(name).unit))
    visual = reference.model.model.visual
    named = visual.fullatt_block_indexes
    with_them = reference.generate(inputs, 1, stop=False).logits
    visual.fullatt_block_indexes = list(range(len(visual.blocks)))
    try:
        without = reference.generate(inputs, 1, stop=False).logits
    finally:
        visual.fullatt_block_indexes = named
    assert abs(with_them - without).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["experts", "some experts"])
def test_choice_of_experts_matters_to_these_weights(cases, name):
    """As above; where the next expert does the work of each, the answer is another."""
    reference = cases(name).reference
    inputs = reference.inputs(reference.chat(QUESTION, 1), noise([(128, 128)]))
    right = reference.generate(inputs, 1, stop=False).logits
    routers = [m for m in reference.model.modules() if type(m).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(next_experts) for router in routers]
    try:
        wrong = reference.generate(inputs, 1, stop=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert routers and abs(right - wrong).max() > 1000 * TOLERANCE


def next_experts(module, args, output):
    logits, scores, index = output
    return logits, scores, (index + 1) % module.num_experts


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
