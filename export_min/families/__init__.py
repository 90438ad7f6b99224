"""The model families that can be exported, one module each. `export_min.graphs` has common parts.

A family defines its Hugging Face class, how published checkpoints name its weights, its three
graphs, and which layers of a stack are equal but for their weights. This module does not import
torch; the module of a family does, and is imported when a checkpoint needs it.
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
"""Architecture by `model_type` of config.json, which is also the name of the module here."""


@dataclass(frozen=True)
class Stack:
    """A list of layers in a graph, and which of them are traced.

    Attributes:
        module: module path of the list, such as "model.visual.blocks".
        order: for each layer, the index of the traced layer to copy. Traced layers that occur
            only once must occur in rising order.
        traced: number of layers in the short trace.
    """

    module: str
    order: Sequence[int]
    traced: int

    @classmethod
    def of(cls, module: str, kinds: Sequence[Hashable]) -> Stack:
        """Return a stack whose short trace holds the first layer of each kind.

        Args:
            module: module path of the list.
            kinds: the kind of each layer; layers of equal kinds differ only in their weights.
        """
        found = list(dict.fromkeys(kinds))
        return cls(module, [found.index(kind) for kind in kinds], len(found))


@dataclass(frozen=True)
class Family:
    """How to export the checkpoints of one `model_type`.

    Attributes:
        model: the Hugging Face class; its `config_class` reads the configuration.
        specs: returns the three graphs for a configuration, with example inputs on the meta device.
        rules: yields the requirements on a configuration: whether each holds, and the error message
            if it does not.
        shorten: returns a copy of a configuration with one layer of each kind.
        stacks: returns the stack of each graph that has one, by the name of the graph.
        parts: names of the objects that config.json must hold.
        renames: pairs of a pattern for names in published checkpoints and its replacement, which
            gives the state-dict name. The first pattern that matches applies.
        turned: pattern of the state-dict names of weights that a checkpoint may store with the last
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
        """Return whether the checkpoint may store a weight of shape `shape` with shape `stored`."""
        swapped = self.turned is not None and re.fullmatch(self.turned, name) is not None
        return stored == shape or (swapped and stored == (*shape[:-2], shape[-1], shape[-2]))

    def rename(self, name: str) -> str:
        """Return the state-dict name of the weight that a checkpoint calls `name`."""
        for pattern, replacement in self.renames:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name


def load(model_type: str) -> Family:
    """Return the family of a `model_type` that is in `FAMILIES`."""
    module = importlib.import_module(f"export_min.families.{model_type}")
    family: Family = module.FAMILY
    return family
