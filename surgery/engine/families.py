"""What sets the model families apart, for recipes and configurations: one visible table.

The passes know nothing of families; recipes ask here how many sites a pass must find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Family:
    """A family by the `model_type` of its checkpoints.

    Attributes:
        runtime: `model.type` in genai_config.json.
        norms: RMS norms a decoder layer has.
        tower_norm: the norm of the vision tower, "layer" or "rms".
        tower_act: its activation, where config.json does not say.
        windows: whether its tokens stand in the order of attention windows.
        experts: whether decoder layers have a mixture of experts in place of an MLP.
    """

    runtime: str
    norms: int
    tower_norm: str = "layer"
    tower_act: str = "gelu_pytorch_tanh"
    windows: bool = False
    experts: bool = False


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen3_vl": Family(runtime="qwen3_vl", norms=4),
        "qwen3_vl_moe": Family(runtime="qwen3_vl", norms=4, experts=True),
        "qwen2_5_vl": Family(
            runtime="qwen2_5_vl", norms=2, tower_norm="rms", tower_act="silu", windows=True
        ),
        # the runtime knows Qwen2.5-VL alone; prompts and positions of pictures are the same
        "qwen2_vl": Family(runtime="qwen2_5_vl", norms=2, tower_act="quick_gelu"),
    }
)
