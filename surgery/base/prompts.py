"""How a prompt marks the place of a picture. Qwen-VL's processors and the runtime agree on it."""

from __future__ import annotations

from surgery.base.errors import UserError

VISION_START, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"
VISION_END = "<|vision_end|>"
IMAGE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"
"""The place of one picture. A processor repeats the middle token for each token of the picture."""
VIDEO = f"{VISION_START}{VIDEO_PAD}{VISION_END}"
"""The place of one video. The middle token becomes the places of its frames, each with its time."""


def turn(text: str, places: str = "") -> str:
    """Return the content of a user turn, with the pictures before the text.

    Args:
        text: what the user says.
        places: `IMAGE` or `VIDEO` for each picture and video, in order.

    Raises:
        UserError: the text contains a token that marks a picture.
    """
    for mark in (VISION_START, IMAGE_PAD, VIDEO_PAD):
        if mark in text:
            raise UserError(f"the question contains {mark}, which the runtime takes for a picture.")
    return places + text
