"""One picture size, known ahead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from surgery.contract import Pass, Site, initializer


class FixedGrid(Pass):
    """The grid of the one allowed picture size becomes a constant.

    before  image_grid_thw [I, 3] read by the graph ; pixel_values [patches, C*t*p*p]
    after   image_grid_thw = [[1, h, w]], read by nobody ; pixel_values [h * w, C*t*p*p]
    keeps   both graph inputs and their names: the runtime feeds them
    not     more than one picture a call: the runtime then calls once a picture
    why     devices without dynamic shapes; folding turns positions, interpolation and rotary
            angles into constants
    """

    name = "fixed_grid"

    def __init__(self, grid: tuple[int, int, int]) -> None:
        """Fix the grid.

        Args:
            grid: frames, rows and columns of patches.
        """
        super().__init__()
        self.grid = grid

    def uses(self, model: ir.Model) -> Iterator[ir.Usage]:
        """Where the grid is read."""
        for value in model.graph.inputs:
            if value.name == "image_grid_thw":
                yield from value.uses()

    def sites(self, model: ir.Model) -> list[Site]:
        """Readers of the grid."""
        return [Site(use.node.name or "", use.node.op_type) for use in self.uses(model)]

    def apply(self, model: ir.Model) -> int:
        """Hand the constant to every reader, fix the number of patches."""
        uses = list(self.uses(model))
        if not uses:
            return 0
        array = np.array([self.grid], np.int64)
        constant = initializer(model.graph, "fixed_grid", ir.tensor(array, name="fixed_grid"))
        for use in uses:
            use.node.replace_input_with(use.idx, constant)
        patches = int(np.prod(self.grid))
        for value in model.graph.inputs:
            if value.name == "image_grid_thw":
                value.shape = ir.Shape((1, 3))
            elif value.name == "pixel_values" and value.shape is not None:
                value.shape = ir.Shape((patches, value.shape[1]))
        return len(uses)
