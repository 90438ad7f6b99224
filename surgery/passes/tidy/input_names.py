"""Inputs under the names that a caller uses."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from surgery.rewrite.contract import Pass, Site


class InputNames(Pass):
    """A graph input gets the name by which a caller knows it.

    before  image_grid_thw
    after   grid_thw
    keeps   every node; only inputs are renamed
    not     a name that the graph has no input of
    why     transformers.js calls this input of Qwen2-VL's tower by another name than the same
            input of later families
    """

    name = "input_names"

    def __init__(self, names: Mapping[str, str], *, expect: int | None = None) -> None:
        """Set the names.

        Args:
            names: new name by old name.
            expect: number of inputs that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.names = dict(names)

    def sites(self, model: ir.Model) -> list[Site]:
        """Inputs of an old name."""
        return [Site(v.name, "input") for v in model.graph.inputs if v.name in self.names]

    def apply(self, model: ir.Model) -> int:
        """Rename them."""
        found = [v for v in model.graph.inputs if v.name in self.names]
        for value in found:
            value.name = self.names[str(value.name)]
        return len(found)
