"""One picture size, fixed when the package is built."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import initializer
from surgery.rewrite.contract import Pass, Site


class FixedGrid(Pass):
    """The grid of patches of the one allowed picture size becomes a constant.

    before  image_grid_thw [I, 3] read by the graph ; pixel_values [patches, C*t*p*p]
    after   image_grid_thw = [[1, h, w]], read by no node ; pixel_values [h * w, C*t*p*p]
    keeps   both graph inputs and their names: the runtime feeds them
    not     several pictures in one call: onnxruntime-genai then calls once for each picture
    why     some devices need static shapes; folding turns positions, interpolation and rotary
            angles into constants
    """

    name = "fixed_grid"

    def __init__(self, grid: tuple[int, int, int], *, expect: int | None = None) -> None:
        """Fix the grid.

        Args:
            grid: frames, rows and columns of patches.
        """
        super().__init__(expect=expect)
        self.grid = grid

    def uses(self, model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
        """Where the grid is read."""
        for value in model.graph.inputs:
            if value.name == "image_grid_thw":
                yield from ((use.node, use.idx) for use in value.uses())

    def sites(self, model: ir.Model) -> list[Site]:
        """Readers of the grid."""
        return [Site(node.name or "", node.op_type) for node, _ in self.uses(model)]

    def apply(self, model: ir.Model) -> int:
        """Let every reader of the grid read the constant; fix the number of patches."""
        uses = list(self.uses(model))
        if not uses:
            return 0
        array = np.array([self.grid], np.int64)
        constant = initializer(model.graph, "fixed_grid", ir.tensor(array, name="fixed_grid"))
        for node, index in uses:
            node.replace_input_with(index, constant)
        sizes = {"patches": int(np.prod(self.grid)), "images": 1}
        made = [v for graph in model.graphs() for node in graph for v in node.outputs]
        for value in (*model.graph.inputs, *made):
            if value.shape is not None:
                value.shape = ir.Shape([known(dim, sizes) for dim in value.shape])
        return len(uses)


def known(dim: int | ir.SymbolicDim, sizes: dict[str, int]) -> int | ir.SymbolicDim:
    """A dimension as a number, where it depends on known sizes alone."""
    if isinstance(dim, int) or dim.value is None or not dim.free_symbols() <= sizes.keys():
        return dim
    number = dim.evaluate(sizes)
    return dim if number is None else number
