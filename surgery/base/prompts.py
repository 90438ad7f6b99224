"""How a prompt marks the place of a picture. Qwen-VL's processors and the runtime agree on it."""

from __future__ import annotations

from surgery.base.errors import UserError

VISION_START, IMAGE_PAD = "<|vision_start|>", "<|image_pad|>"
IMAGE = f"{VISION_START}{IMAGE_PAD}<|vision_end|>"
"""The place of one picture. A processor repeats the middle token for each token of the picture."""


def turn(text: str, pictures: int = 0) -> str:
    """Return the content of a user turn, with the pictures before the text.

    Raises:
        UserError: the text contains a token that marks a picture.
    """
    for mark in (VISION_START, IMAGE_PAD):
        if mark in text:
            raise UserError(f"the question contains {mark}, which the runtime takes for a picture.")
    return IMAGE * pictures + text
