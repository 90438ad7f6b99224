"""Qwen2.5-VL: Qwen2-VL with a vision tower most of whose blocks attend only within windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from export_min.families import Family, Stack
from export_min.families.qwen2_vl import RENAMES, PackedVision, text_rules, text_stack
from export_min.families.qwen2_vl import shorten as shorten_all
from export_min.graphs import Spec, decoder, embedding, vision


class WindowedVision(PackedVision):
    """Vision tower that sorts tokens by window, so that a window is a segment of its attention."""

    def order(self, grid_thw: torch.Tensor, patches: int) -> dict[str, Any]:
        visual, merge = self.model.visual, self.model.visual.spatial_merge_size
        side = visual.window_size // merge // visual.patch_size
        index, ends = windows(grid_thw, side, merge, patches)
        return {"window_index": index, "cu_window_seqlens": ends, "max_window_seqlen": 0}


def windows(
    grid_thw: torch.Tensor, side: int, merge: int, patches: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of tokens by window, `[M]`, and the boundaries of the windows in patches.

    The result equals that of `get_vision_window_index` in transformers, which loops over
    `grid_thw.tolist()` and therefore cannot be traced. A window lies within one frame. Windows at
    the lower and right edges are smaller if the frame is not a multiple of the window size.

    Args:
        grid_thw: `[I, 3]`.
        side: tokens along a side of a window.
        merge: patches along a side of a token.
        patches: N, of all grids.
    """
    frames, height, width = grid_thw[:, 0], grid_thw[:, 1] // merge, grid_thw[:, 2] // merge
    down, across = (height + side - 1) // side, (width + side - 1) // side
    token = torch.arange(patches // merge**2, device=grid_thw.device)
    image, within = located(token, frames * height * width)
    row, column = within // width[image] % height[image], within % width[image]
    frame = within // (height * width)[image]
    window_row = frame * down[image] + row // side
    before = (frames * down * across).cumsum(0) - frames * down * across
    window = before[image] + window_row * across[image] + column // side
    order = torch.argsort((window * side + row % side) * side + column % side)

    count = (frames * down * across).sum()
    number = torch.arange(count, device=grid_thw.device)  # type: ignore[call-overload]
    image, within = located(number, frames * down * across)
    row, column = within // across[image] % down[image], within % across[image]
    rows = (height[image] - row * side).clamp(max=side)
    columns = (width[image] - column * side).clamp(max=side)
    ends = (rows * columns * merge**2).cumsum(0)
    return order, torch.nn.functional.pad(ends, (1, 0))


def located(number: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each index the image that it belongs to, and its index within that image."""
    ends = counts.cumsum(0)
    image = (number[:, None] >= ends[None, :]).sum(-1)
    return image, number - (ends - counts)[image]


def specs(config: Any) -> tuple[Spec, Spec, Spec]:
    """Return the three graphs for a `Qwen2_5_VLConfig`."""
    return vision(config, WindowedVision), embedding(config), decoder(config)


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Require vision features as wide as the decoder, and windows of at least one token."""
    text, tower = config.text_config, config.vision_config
    yield (
        tower.out_hidden_size == text.hidden_size,
        f"vision_config.out_hidden_size is {tower.out_hidden_size}, but text_config.hidden_size is "
        f"{text.hidden_size}",
    )
    token = tower.spatial_merge_size * tower.patch_size
    yield (
        tower.window_size >= token,
        f"vision_config.window_size {tower.window_size} is less than the {token} pixels of a token",
    )
    yield from text_rules(config)


def kinds(config: Any) -> list[bool]:
    """Return for each vision block whether it attends to the whole frame rather than a window."""
    tower = config.vision_config
    return [block in tower.fullatt_block_indexes for block in range(tower.depth)]


def shorten(config: Any) -> Any:
    """Keep one vision block of each kind and one decoder layer of each kind."""
    short = shorten_all(config)
    found = list(dict.fromkeys(kinds(config)))
    short.vision_config.depth = len(found)
    short.vision_config.fullatt_block_indexes = [i for i, full in enumerate(found) if full]
    return short


def stacks(config: Any) -> dict[str, Stack]:
    """Return the vision stack, whose blocks differ by their attention, and the decoder stack."""
    blocks = Stack.of("model.visual.blocks", kinds(config))
    return {"vision": blocks, "decoder": text_stack(config)}


FAMILY = Family(
    Qwen2_5_VLForConditionalGeneration,
    specs,
    rules,
    shorten,
    stacks,
    parts=("vision_config",),
    renames=RENAMES,
)
