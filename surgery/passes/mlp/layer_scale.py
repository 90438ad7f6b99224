"""LayerScale: a learnt scale per channel, multiplied into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import RowScaled, Source, set_source, source_of, transposed


@dataclass(frozen=True)
class Branch:
    """New sources of the weights, and the value `out` to read instead of the scaled one."""

    sources: dict[ir.Value, Source]
    out: ir.Value


class LayerScale(NodePass[Branch]):
    """A learnt scale per channel is multiplied into the projection before it.

    before  (x W^T + b) * scale [H], the weight in either layout
    after   x (scale W)^T + scale b, scaled when the package is written
    keeps   names of the weights; values up to rounding, which happens in another order
    not     a projection or a weight that another node reads; a scale that a node computes
    why     saves one pass over the activation in each branch
    """

    name = "layer_scale"
    needs = ("dims", "fold", "noop")
    anchors = ("Mul",)

    def match(self, node: ir.Node, m: Matcher) -> Branch:
        """A projection `[.., H]` from weights `[H, K]` and the scale `[H]`."""
        a, b = node.inputs
        assert a is not None and b is not None
        scale, out = (a, b) if source_of(a) is not None and a.is_initializer() else (b, a)
        by = source_of(scale) if scale.is_initializer() else None
        m.check(by is not None, "a scale of the checkpoint", scale.name)
        assert by is not None
        m.rank(scale, 1)
        m.check(scale.dtype == ir.DataType.FLOAT, "a float32 scale", scale.dtype)
        made = m.producer(out, "Gemm", "Add", "MatMul")
        weights, size = projection(made, m), by.parts[0][1][0]
        readers = [v.name for v in weights if len(v.uses()) > 1]
        m.check(not readers, "weights read once", readers)
        only = len(out.uses()) == 1 and not out.is_graph_output()
        m.check(only, "a projection that the scale alone reads", out.name)
        sources: dict[ir.Value, Source] = {}
        for weight in weights:
            source = source_of(weight) if weight.is_initializer() else None
            m.check(source is not None, "a weight of the checkpoint", weight.name)
            assert source is not None
            float_ = source.parts[0][0] == ir.DataType.FLOAT
            m.check(float_, "a float32 weight", source.parts[0][0])
            turned = any(use.node.op_type == "MatMul" for use in weight.uses())
            source = transposed(source) if turned else source
            m.check(source.parts[0][1][0] == size, f"{size} rows", source.parts[0][1])
            scaled = RowScaled(source, by)
            sources[weight] = transposed(scaled) if turned else scaled
        return Branch(sources, out)

    def rewrite(self, node: ir.Node, found: Branch, add: Builder) -> None:
        """Scale the weights and drop the multiplication."""
        for weight, source in found.sources.items():
            set_source(weight, source)
        replace(node.outputs[0], found.out)


def projection(made: ir.Node, m: Matcher) -> list[ir.Value]:
    """Weight `[H, K]` and bias `[H]` of a projection."""
    if made.op_type == "Gemm":
        turned = made.attributes.get_int("transB", 0)
        factors = [made.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
        m.check(turned == 1 and factors == [1, 1], "x W^T + b", (turned, factors))
        return [v for v in made.inputs[1:] if v is not None]
    if made.op_type == "MatMul":
        weight = made.inputs[1]
        assert weight is not None
        if not weight.is_initializer():
            weight = m.producer(weight, "Transpose").inputs[0]
        assert weight is not None
        m.rank(weight, 2)
        return [weight]
    product, bias = m.operands(made, "MatMul")
    m.rank(bias, 1)
    m.check(len(product.outputs[0].uses()) == 1, "a product read by its bias alone", "more")
    return [*projection(product, m), bias]
