"""The model families that can be exported: one module each; common parts in `export_min.graphs`.

A family says which Hugging Face classes it is, how published checkpoints name its weights,
what its three graphs look like, and which layers of a stack are alike. Nothing here imports torch:
a family's module is imported when a checkpoint names it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export_min.graphs import Spec

FAMILIES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
"""`model_type` of config.json, which names the module here too, and the architecture."""


@dataclass(frozen=True)
class Stack:
    """A list of layers in a graph, and which layers of it have to be traced.

    Attributes:
        module: module path of the list, such as "model.visual.blocks".
        order: for each layer, the layer of the short trace that it is like; those that occur once
            do so in rising order.
        traced: number of layers in the short trace.
    """

    module: str
    order: Sequence[int]
    traced: int

    @classmethod
    def of(cls, module: str, kinds: Sequence[Hashable]) -> Stack:
        """A stack whose short trace has the first layer of each kind."""
        found = list(dict.fromkeys(kinds))
        return cls(module, [found.index(kind) for kind in kinds], len(found))


@dataclass(frozen=True)
class Family:
    """How to export the checkpoints of one `model_type`.

    Attributes:
        model: the Hugging Face class, its `config_class` set.
        specs: the three graphs for a configuration, with example inputs on the meta device.
        rules: what has to hold of a configuration, and what to say where it does not.
        shorten: a copy of a configuration with one layer of each kind.
        stacks: the stack of each graph that has one, for the whole configuration.
        parts: objects that config.json must hold.
        renames: patterns from published names of weights to those of the state dict, in order;
            the first that matches is taken.
        turned: pattern of the state-dict names whose weights a checkpoint may hold with the last
            two axes swapped.
    """

    model: Any
    specs: Callable[[Any], tuple[Spec, Spec, Spec]]
    rules: Callable[[Any], Iterator[tuple[bool, str]]]
    shorten: Callable[[Any], Any]
    stacks: Callable[[Any], dict[str, Stack]]
    parts: tuple[str, ...] = ("text_config", "vision_config")
    renames: tuple[tuple[str, str], ...] = ()
    turned: str | None = None

    def fits(self, name: str, stored: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether a weight of shape `shape` may be stored as `stored`."""
        swapped = self.turned is not None and re.fullmatch(self.turned, name) is not None
        return stored == shape or (swapped and stored == (*shape[:-2], shape[-1], shape[-2]))

    def rename(self, name: str) -> str:
        """The state-dict name of a weight that a checkpoint calls `name`."""
        for pattern, replacement in self.renames:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name


def load(model_type: str) -> Family:
    """The family of a `model_type` in `FAMILIES`."""
    module = importlib.import_module(f"export_min.families.{model_type}")
    family: Family = module.FAMILY
    return family
