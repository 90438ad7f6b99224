"""What recipes and configurations must know of a model family and cannot read from config.json.

The passes know nothing of families; recipes look up here how many sites a pass must find.
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
        norms: RMS norms a decoder layer has.
        tower_norm: the norm of the vision tower, "layer" or "rms".
        windows: whether its tokens stand in the order of attention windows.
        experts: whether decoder layers have a mixture of experts in place of an MLP.
    """

    runtime: str
    norms: int
    tower_norm: str = "layer"
    windows: bool = False
    experts: bool = False


TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "qwen3_vl": Traits(runtime="qwen3_vl", norms=4),
        "qwen3_vl_moe": Traits(runtime="qwen3_vl", norms=4, experts=True),
        "qwen2_5_vl": Traits(runtime="qwen2_5_vl", norms=2, tower_norm="rms", windows=True),
        # the runtime knows Qwen2.5-VL alone; prompts and positions of pictures are the same
        "qwen2_vl": Traits(runtime="qwen2_5_vl", norms=2),
    }
)
