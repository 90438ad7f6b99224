"""Vision towers of vision-language models, tiny and random, and how to export one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text import LAYERS, WEIGHT, stir
from torch import nn
from traced import trace
from transformers.vision_utils import get_vision_cu_seqlens

from export_min.attention import PACKED
from export_min.families.qwen2_5_vl import windows
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


GRIDS = (
    [[1, 4, 4]],
    [[1, 8, 6], [1, 4, 10], [1, 2, 2]],
    [[1, 4, 8], [1, 4, 8]],
    [[1, 10, 14], [1, 6, 6]],
)
"""Pictures of several sizes, of one size, one alone; none is the example's."""
BATCHES = (1, 3, 5)

PLAIN = {  # sites of a plain tower of pictures
    "multi_head_attention": LAYERS,
    "skip_layer_norm": 2 * LAYERS + 1,
}
PACKED_PLAIN = {  # sites of a tower of packed patches
    "patch_embed": 1,
    "freq_table": 2,
    "qkv_split": LAYERS,
    "rotary": 2 * LAYERS,
    "packed_attention": LAYERS,
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
        expect: sites of each pass, where they differ from `PLAIN` or `PACKED_PLAIN`.
        grid: packed rows of patches with their grids, else pictures `[B, C, H, W]`.
        forward: calls the tower; the features.
        batch: whether it takes any number of pictures of one size.
    """

    name: str
    module: str
    config: str
    model: str
    sizes: dict[str, Any] = field(default_factory=dict)
    expect: dict[str, int] = field(default_factory=dict)
    grid: bool = False
    forward: Callable[..., torch.Tensor] = lambda model, x: model(x).last_hidden_state
    batch: bool = True
    recipe = "vision"
    weight = WEIGHT

    @property
    def sites(self) -> dict[str, int]:
        """Sites of each pass, those of no pass left out."""
        plain = PACKED_PLAIN if self.grid else PLAIN
        return {name: n for name, n in (plain | self.expect).items() if n}

    @property
    def refused(self) -> tuple[str, ...]:
        """Passes that decline a place: a whole picture has patches to unfold."""
        return () if self.grid else ("patch_embed",)

    def write(self, folder: Path) -> None:
        """Export and run."""
        trace(self, folder)

    def build(self) -> nn.Module:
        """The random tower."""
        torch.manual_seed(0)
        module = importlib.import_module(f"transformers.models.{self.module}")
        config = getattr(module, self.config)(**((GRID if self.grid else IMAGE) | self.sizes))
        model = getattr(module, self.model)._from_config(config, attn_implementation="sdpa").eval()
        if self.grid:
            model.config._attn_implementation = PACKED
        return (Packed if self.grid else Pictures)(stir(model), self.forward)

    def inputs(self, size: Any, seed: int) -> dict[str, torch.Tensor]:
        """Random inputs by argument name: for grids, or for a number of pictures."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

        if not self.grid:
            return {"pixel_values": normal(size, 3, 32, 24 if not self.batch else 32)}
        grids = torch.tensor(size)
        width = 3 * GRID["temporal_patch_size"] * GRID["patch_size"] ** 2
        pixels = normal(int(grids.prod(-1).sum()), width)
        return {"pixel_values": pixels, "image_grid_thw": grids}

    def example(self) -> dict[str, torch.Tensor]:
        """Inputs to trace with."""
        return self.inputs([[1, 4, 6], [1, 8, 4], [1, 2, 6]] if self.grid else self.rows(2), 0)

    def rows(self, size: int) -> int:
        """A number of pictures, or 1 where it takes no other."""
        return size if self.batch else 1

    def cases(self) -> Iterator[dict[str, torch.Tensor]]:
        """Inputs of other shapes."""
        for seed, size in enumerate(GRIDS if self.grid else map(self.rows, BATCHES)):
            yield self.inputs(size, seed + 1)

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        if self.grid:
            return {"pixel_values": {0: "patches"}, "image_grid_thw": {0: "images"}}
        return {"pixel_values": {0: "batch"} if self.batch else {}}

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs."""
        return list(self.dynamic), ["features"]


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


TOWERS = (
    Tower("SmolVLM", "smolvlm.modeling_smolvlm", "SmolVLMVisionConfig", "SmolVLMVisionTransformer",
          forward=masked),
    Tower("PaliGemma", "siglip.modeling_siglip", "SiglipVisionConfig", "SiglipVisionModel",
          {"vision_use_head": False}),
    Tower("LLaVA", "clip.modeling_clip", "CLIPVisionConfig", "CLIPVisionModel",
          expect={"zero_bias": 1, "silu": LAYERS, "skip_layer_norm": 2 * LAYERS}),
    Tower("InternVL", "internvl.modeling_internvl", "InternVLVisionConfig", "InternVLVisionModel",
          {"image_size": [32, 32], "patch_size": [8, 8]},
          {"layer_scale": 2 * LAYERS, "skip_layer_norm": 2 * LAYERS}),
    Tower("InternVL 6B", "internvl.modeling_internvl", "InternVLVisionConfig",
          "InternVLVisionModel",
          {"image_size": [32, 32], "patch_size": [8, 8], "use_qk_norm": True,
           "norm_type": "rms_norm"},
          {"layer_scale": 2 * LAYERS, "skip_layer_norm": 0, "skip_rms_norm": 2 * LAYERS,
           "rms_norm": 4 * LAYERS}),
    Tower("Pixtral", "pixtral.modeling_pixtral", "PixtralVisionConfig", "PixtralVisionModel",
          expect={"zero_bias": 1, "rms_norm": 2 * LAYERS + 1, "skip_layer_norm": 0,
                  "rotary": 2 * LAYERS, "skip_rms_norm": 2 * LAYERS - 1}, batch=False),
    Tower("Ovis2", "ovis2.modeling_ovis2", "Ovis2VisionConfig", "Ovis2VisionModel",
          {"hidden_stride": 1, "vocab_size": 96, "num_visual_indicator_tokens": 5},
          {"rms_norm": 2 * LAYERS + 2, "silu": LAYERS, "skip_layer_norm": 0,
                  "skip_rms_norm": 2 * LAYERS + 1}),
    Tower("GLM-4V", "glm4v.modeling_glm4v", "Glm4vVisionConfig", "Glm4vVisionModel",
          {"out_hidden_size": 64, "image_size": 32},
          {"patch_embed": 2, "rms_norm": 2 * LAYERS + 2, "silu": LAYERS + 1,
           "skip_rms_norm": 2 * LAYERS + 1}, True, pooled),
    Tower("Qwen2-VL", "qwen2_vl.modeling_qwen2_vl", "Qwen2VLVisionConfig",
          "Qwen2VisionTransformerPretrainedModel",
          {"embed_dim": 64, "mlp_ratio": 2, "hidden_size": 64},
          {"zero_bias": 1, "silu": LAYERS, "skip_layer_norm": 2 * LAYERS}, True, pooled),
    Tower("Qwen2.5-VL", "qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLVisionConfig",
          "Qwen2_5_VisionTransformerPretrainedModel",
          {"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
          {"zero_bias": 1, "late_repeat": 2, "rms_norm": 2 * LAYERS + 1, "silu": LAYERS,
           "skip_rms_norm": 2 * LAYERS}, True, windowed),
)  # fmt: skip
