"""The opset that the provider's kernels are registered for."""

from __future__ import annotations

import onnx.defs
import onnx_ir as ir

from surgery.rewrite.contract import Pass, PassError, Site
from surgery.rewrite.scope import place


class Opset(Pass):
    """The graph declares an older opset of ONNX's own domain.

    before  opset 23
    after   opset 21
    keeps   every node; each op and attribute exists in the older opset, dtypes are not checked
    not     a graph with an op or attribute that the older opset lacks: the pass raises an error
    why     onnxruntime picks kernels by the version of the op: DirectML's end at 21, so every
            Reshape and Cast of opset 23 would run on the CPU
    """

    name = "opset"

    def __init__(self, version: int, *, expect: int | None = None) -> None:
        """Choose the opset.

        Args:
            version: of ONNX's own domain.
        """
        super().__init__(expect=expect)
        self.version = version

    def sites(self, model: ir.Model) -> list[Site]:
        """The graph, if it declares a newer opset."""
        declared = model.opset_imports.get("", 0)
        newer = declared > self.version
        return [Site(model.graph.name or "", f"opset {declared}")] if newer else []

    def apply(self, model: ir.Model) -> int:
        """Check every node, then declare the older opset."""
        if not self.sites(model):
            return 0
        for graph in model.graphs():
            for node in graph:
                self.check(node)
        for graph in model.graphs():
            graph.opset_imports[""] = self.version
        return 1

    def check(self, node: ir.Node) -> None:
        """Raise unless the op exists in the older opset, attributes included."""
        if node.domain or node.op_type == "SimplifiedLayerNormalization":  # onnxruntime's own
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, self.version)
        except onnx.defs.SchemaError as e:
            raise PassError(
                f"{self.name}: {node.op_type} at {place(node)} is not in opset {self.version}. "
                f"Replace it by older ops first."
            ) from e
        unknown = set(node.attributes) - set(schema.attributes)
        if unknown:
            raise PassError(
                f"{self.name}: {node.op_type} at {place(node)} has {', '.join(sorted(unknown))}, "
                f"unknown in opset {self.version}. Remove it first."
            )
