"""What recipes and configurations need to know about a family that config.json does not say.

Passes do not depend on families; recipes look up here how many sites a pass must find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Traits:
    """Traits of a family, looked up by the `model_type` of its checkpoints.

    Attributes:
        runtime: `model.type` in genai_config.json.
        norms: number of RMS norms in a decoder layer.
        tower_norm: the norm of the vision tower, "layer" or "rms".
        windows: whether the vision tower reorders its tokens by attention windows.
        experts: whether decoder layers may have a mixture of experts in place of an MLP.
        grid_input: what transformers.js calls the vision graph's input `image_grid_thw`.
    """

    runtime: str
    norms: int
    tower_norm: str = "layer"
    windows: bool = False
    experts: bool = False
    grid_input: str = "image_grid_thw"


TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "qwen3_vl": Traits(runtime="qwen3_vl", norms=4),
        "qwen3_vl_moe": Traits(runtime="qwen3_vl", norms=4, experts=True),
        "qwen2_5_vl": Traits(runtime="qwen2_5_vl", norms=2, tower_norm="rms", windows=True),
        # onnxruntime-genai has no qwen2_vl; prompts and picture positions are those of qwen2_5_vl
        "qwen2_vl": Traits(runtime="qwen2_5_vl", norms=2, grid_input="grid_thw"),
    }
)
