"""Gemm as a product and a sum, so that its weight can be quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Linear:
    """A layer `x @ weight + bias`, x `[M, K]`; `turned` where the weight is stored `[N, K]`."""

    x: ir.Value
    weight: ir.Value
    turned: bool
    bias: ir.Value | None


class PlainLinear(NodePass[Linear]):
    """A linear layer written as Gemm becomes a product and a sum.

    before  Gemm(x, weight, bias) with a stored weight, transB or not
    after   MatMul(x, weight) + bias, the weight behind a Transpose where transB was 1
    keeps   values up to the order of sums ; the weight's name
    not     alpha or beta other than 1, transA, a weight that is computed or is to stay in float
    why     matmul_nbits takes MatMul alone, and older exporters write every linear layer as Gemm
    """

    name = "plain_linear"
    needs = ("dims", "fold", "noop")
    anchors = ("Gemm",)

    def __init__(
        self, wanted: Callable[[str], bool] = lambda name: True, *, expect: int | None = None
    ) -> None:
        """Choose the layers.

        Args:
            wanted: whether the weight of that name is to be quantized; the layers of others, which
                are faster as Gemm, are left alone.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.wanted = wanted

    def match(self, node: ir.Node, m: Matcher) -> Linear:
        """A plain layer."""
        x, weight, *rest = node.inputs
        assert x is not None and weight is not None
        m.rank(weight, 2)
        m.check(weight.is_initializer(), "a stored weight", weight.name)
        m.check(self.wanted(weight.name or ""), "a weight that is to be quantized", weight.name)
        factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
        m.check(factors == [1.0, 1.0], "alpha and beta of 1", factors)
        m.check(node.attributes.get_int("transA", 0) == 0, "rows that are not transposed", 1)
        turned = node.attributes.get_int("transB", 0) == 1
        return Linear(x, weight, turned, rest[0] if rest else None)

    def rewrite(self, node: ir.Node, found: Linear, add: Builder) -> None:
        """A product, and a sum where there is a bias."""
        weight, out = found.weight, node.outputs[0]
        assert weight.shape is not None
        if found.turned:
            n, k = weight.shape
            perm = {"perm": [1, 0]}
            weight = add("Transpose", [weight], perm, dtype=weight.dtype, shape=(k, n))
        made = add("MatMul", [found.x, weight], like=out)
        if found.bias is not None:
            made = add("Add", [made, found.bias], like=out)
        replace(out, made)
