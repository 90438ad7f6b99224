"""Vision towers of vision-language models, tiny and random, and how to export one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.vision_utils import get_vision_cu_seqlens

from export_min.attention import PACKED
from export_min.graphs import patch_positions

IMAGE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
GRID = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}


@dataclass(frozen=True)
class Tower:
    """A family's vision tower.

    Attributes:
        name: of the family.
        module: of transformers.
        config: the class of its vision configuration.
        model: the class of the tower.
        sizes: what differs from `IMAGE` or `GRID`.
        grid: packed rows of patches with their grids, else pictures `[B, C, H, W]`.
        forward: calls the tower; the features.
    """

    name: str
    module: str
    config: str
    model: str
    sizes: dict[str, Any] = field(default_factory=dict)
    grid: bool = False
    forward: Callable[..., torch.Tensor] = lambda model, x: model(x).last_hidden_state

    def build(self) -> nn.Module:
        """The random tower."""
        torch.manual_seed(0)
        module = importlib.import_module(f"transformers.models.{self.module}")
        config = getattr(module, self.config)(**((GRID if self.grid else IMAGE) | self.sizes))
        model = getattr(module, self.model)._from_config(config, attn_implementation="sdpa").eval()
        if self.grid:
            model.config._attn_implementation = PACKED
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(0.2 * torch.randn_like(weight))
        return Packed(model, self.forward) if self.grid else Pictures(model, self.forward)


class Pictures(nn.Module):
    """Pictures of one size to features."""

    def __init__(self, model: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.call(self.model, pixel_values)


class Packed(nn.Module):
    """Rows of patches of any number of pictures to features."""

    def __init__(self, model: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
        merge = self.model.spatial_merge_size
        inputs = {
            "grid_thw": image_grid_thw,
            "cu_seqlens": get_vision_cu_seqlens(image_grid_thw),
            "max_seqlen": 0,
            "position_ids": patch_positions(image_grid_thw, pixel_values.shape[0], merge),
        }
        return self.call(self.model, pixel_values, **inputs)


def pooled(model: nn.Module, x: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model(x, **inputs).pooler_output


def masked(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A tower that is told which patches are there; all are."""
    side = model.config.patch_size
    mask = torch.ones(x.shape[0], x.shape[2] // side, x.shape[3] // side, dtype=torch.bool)
    return model(x, patch_attention_mask=mask).last_hidden_state


def windowed(model: nn.Module, x: torch.Tensor, grid_thw: torch.Tensor, **inputs: Any) -> Any:
    """A tower with attention windows."""
    index, ends = windows(
        grid_thw, model.window_size // model.spatial_merge_size // model.patch_size,
        model.spatial_merge_size, x.shape[0],
    )  # fmt: skip
    inputs |= {"window_index": index, "cu_window_seqlens": ends, "max_window_seqlen": 0}
    return model(x, grid_thw=grid_thw, **inputs).pooler_output


def windows(
    grid_thw: torch.Tensor, side: int, merge: int, patches: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of tokens by attention window, and where windows end.

    The closed form of transformers' `get_vision_window_index`, which loops over the grids.
    """
    height, width = grid_thw[:, 1] // merge, grid_thw[:, 2] // merge
    tokens = grid_thw[:, 0] * height * width
    token = torch.arange(patches // merge**2, device=grid_thw.device)
    image = (token[:, None] >= tokens.cumsum(0)[None, :]).sum(-1)
    within = token - (tokens.cumsum(0) - tokens)[image]
    h, w = height[image], width[image]
    row, column = within % (h * w) // w, within % w
    across = (width + side - 1) // side
    down = (height + side - 1) // side
    count = grid_thw[:, 0] * down * across
    first = (count.cumsum(0) - count)[image]
    frame = within // (h * w)
    window = first + (frame * down[image] + row // side) * across[image] + column // side
    key = (window * side + row % side) * side + column % side
    number = torch.arange(count.sum(), device=grid_thw.device)
    sizes = (window[None, :] == number[:, None]).sum(-1) * merge**2
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return torch.argsort(key), ends


TOWERS = (
    Tower("SmolVLM", "smolvlm.modeling_smolvlm", "SmolVLMVisionConfig", "SmolVLMVisionTransformer", forward=masked),
    Tower("PaliGemma", "siglip.modeling_siglip", "SiglipVisionConfig", "SiglipVisionModel", {"vision_use_head": False}),
    Tower("LLaVA", "clip.modeling_clip", "CLIPVisionConfig", "CLIPVisionModel"),
    Tower("InternVL", "internvl.modeling_internvl", "InternVLVisionConfig", "InternVLVisionModel",
          {"image_size": [32, 32], "patch_size": [8, 8]}),
    Tower("InternVL (QK norm)", "internvl.modeling_internvl", "InternVLVisionConfig", "InternVLVisionModel",
          {"image_size": [32, 32], "patch_size": [8, 8], "use_qk_norm": True,
           "norm_type": "rms_norm"}),
    Tower("Pixtral", "pixtral.modeling_pixtral", "PixtralVisionConfig", "PixtralVisionModel"),
    Tower("GLM-4V", "glm4v.modeling_glm4v", "Glm4vVisionConfig", "Glm4vVisionModel",
          {"out_hidden_size": 64, "image_size": 32}, True, pooled),
    Tower("Qwen2-VL", "qwen2_vl.modeling_qwen2_vl", "Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel",
          {"embed_dim": 64, "mlp_ratio": 2, "hidden_size": 64}, True, pooled),
    Tower("Qwen2.5-VL", "qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel",
          {"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]}, True, windowed),
)  # fmt: skip
