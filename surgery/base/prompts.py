"""How a prompt marks the place of a picture, which Qwen-VL's processors and the runtime share."""

from __future__ import annotations

from surgery.base.errors import UserError

VISION_START, IMAGE_PAD = "<|vision_start|>", "<|image_pad|>"
IMAGE = f"{VISION_START}{IMAGE_PAD}<|vision_end|>"
"""The place of one picture; a processor repeats the middle token for every token of the picture."""


def turn(text: str, pictures: int = 0) -> str:
    """Content of a user turn, pictures first.

    Raises:
        UserError: the text itself holds a mark of a picture.
    """
    for mark in (VISION_START, IMAGE_PAD):
        if mark in text:
            raise UserError(f"the question holds {mark}, which the runtime takes for a picture.")
    return IMAGE * pictures + text
