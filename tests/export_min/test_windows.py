"""The order of tokens by attention window is transformers' own, for any mix of grids."""

from __future__ import annotations

import pytest
import torch
from transformers.vision_utils import get_vision_window_index

from export_min.families.qwen2_5_vl import windows

PATCH = 14


@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 8])
def test_windows(side: int, merge: int) -> None:
    """Sides that are multiples of the window, others, sides of one token, several frames."""
    rng = torch.Generator().manual_seed(side)
    for images in (1, 1, 2, 5):
        frames = torch.randint(1, 4, (images, 1), generator=rng)
        sides = torch.randint(1, 18, (images, 2), generator=rng) * merge
        grids = torch.cat([frames, sides], 1)
        patches = int(grids.prod(-1).sum())
        pixels = side * merge * PATCH + PATCH - 1  # the rest of the division is dropped
        order, ends = get_vision_window_index(grids, merge, pixels, PATCH)
        found, limits = windows(grids, side, merge, patches)
        assert torch.equal(found, order)
        assert limits.tolist() == ends.tolist()
