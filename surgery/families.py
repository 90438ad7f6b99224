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
    """

    runtime: str
    norms: int


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen3_vl": Family(runtime="qwen3_vl", norms=4),
    }
)
