"""Products of integers, activations and weights in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.products import product_of
from surgery.passes.quantized.blocks import PlannedPass, Planner, quantizable
from surgery.rewrite.builder import Builder, initializer, replace
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import RowQuantized, RowTensor, Source, narrow, transposed

OP = "MatMulIntegerToFloat"
CODES = 255
"""The largest code of an activation."""
MIDDLE = 128
"""The code of 0 where activations have both signs."""
AFTER_GELU = 32
"""The code of 0 behind a GELU, which is never below -0.17: most codes are for what is positive."""
GELUS = "Gelu", "FastGelu", "BiasGelu", "QuickGelu"
LEAST = 2.0**-100
"""The smallest scale: a row of zeros has codes of 0, and not 0 / 0."""


@dataclass(frozen=True)
class Linear:
    """A product with a weight.

    Attributes:
        x: float32 `[..., K]`.
        weight: the initializer.
        source: its numbers, `[N, K]`.
        zero: the code of 0 in activations.
    """

    x: ir.Value
    weight: ir.Value
    source: Source
    zero: int


class MatMulInt8(PlannedPass[Linear]):
    """A product with a weight becomes a product of 8-bit integers, both scaled row by row.

    before  MatMul(x [..., K], weight), the weight [K, N], or [N, K] behind a Transpose
    after   MatMulIntegerToFloat(codes, weight.codes [K, N], 1, weight.scales [N], zero) * scales
            where scales [M] = max(max(x) / (255 - zero), -min(x) / zero) of each row, and
            codes = QuantizeLinear(x, scales, zero); products of one x share its codes ; x of
            another rank than 2 is flattened to rows before, and the result shaped back
    keeps   the weight's name as a prefix; sums of integers are exact, so that a row's result
            depends neither on the rows beside it nor on the kernel
    not     x of an unknown rank or another dtype than float32; weights that the caller leaves in
            float
    why     integer kernels sum a whole row of K before they scale: on two cores with AVX-512 VNNI
            2 times as fast as 8-bit blocks of 128, with AMX 3 to 4 times
    """

    name = "matmul_int8"
    needs = ("dims", "fold", "noop")
    anchors = ("MatMul",)

    def __init__(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        planner: Planner | None = None,
        expect: int | None = None,
    ) -> None:
        """Choose the weights.

        Args:
            wanted: whether a weight is to be quantized, by its name.
            planner: lists the weights of a graph for the records; it decides nothing.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(planner, expect=expect)
        self.wanted = wanted

    def match(self, node: ir.Node, m: Matcher) -> Linear:
        """Float32 rows times a stored matrix."""
        product = product_of(node)
        m.check(product is not None, "a stored matrix on the right", node.inputs[1])
        assert product is not None
        x = node.inputs[0]
        assert x is not None
        quantizable(product.weight, m)
        m.check(self.wanted(product.name), "a weight that is to be quantized", product.name)
        known = x.shape is not None and len(x.shape) >= 2
        m.check(known, "a known rank of 2 or more", x.shape)
        m.check(x.dtype == ir.DataType.FLOAT, "float32 activations", x.dtype)
        made = x.producer()
        behind = made is not None and made.op_type in GELUS
        return Linear(x, product.weight, narrow(product.source), AFTER_GELU if behind else MIDDLE)

    def rewrite(self, node: ir.Node, found: Linear, add: Builder) -> None:
        """Quantize the rows, multiply, and scale the rows of the result."""
        name, out = found.weight.name or "", node.outputs[0]
        blocks = RowQuantized(found.source)
        n, k = blocks.parts[0][1]
        x = found.x if is_matrix(found.x) else flat(found.x, k, add)
        codes, scales = shared_codes(x, add) or quantized_rows(x, found.zero, add)
        weight = stored(add.main, f"{name}.codes", RowTensor(transposed(blocks), name=""))
        factors = stored(add.main, f"{name}.scales", RowTensor(blocks, 1, name=""))
        one = add.constant(np.array(1, np.float32), "one_scale")
        zero = add.constant(np.array(found.zero, np.uint8), f"code_of_zero_{found.zero}")
        assert x.shape is not None
        rows = x.shape[0]
        inputs = [codes, weight, one, factors, zero]
        sums = add(OP, inputs, domain="com.microsoft", dtype=out.dtype, shape=(rows, n))
        column = add("Unsqueeze", [scales, axis(add)], dtype=scales.dtype, shape=(rows, 1))
        product = add("Mul", [sums, column], dtype=out.dtype, shape=(rows, n))
        replace(out, product if x is found.x else shaped(product, found.x, out, add))


def is_matrix(x: ir.Value) -> bool:
    """Whether x is of rank 2."""
    return x.shape is not None and len(x.shape) == 2


def flat(x: ir.Value, k: int, add: Builder) -> ir.Value:
    """x as rows `[M, K]`, those that an earlier product of this pass has."""
    known = own(x, "Reshape", add)
    if known is not None:
        return known.outputs[0]
    shape = add.constant(np.array([-1, k], np.int64), f"rows_of_{k}")
    return add("Reshape", [x, shape], dtype=x.dtype, shape=(None, k))


def shaped(product: ir.Value, x: ir.Value, out: ir.Value, add: Builder) -> ir.Value:
    """Rows `[M, N]` in the outer shape of x."""
    assert x.shape is not None and product.shape is not None
    outer, n = len(x.shape) - 1, product.shape[1]
    dims = add("Shape", [x], {"end": outer}, dtype=ir.DataType.INT64, shape=(outer,))
    width = add.constant(np.array([n], np.int64), f"width_{n}")
    shape = add("Concat", [dims, width], {"axis": 0}, dtype=ir.DataType.INT64, shape=(outer + 1,))
    return add("Reshape", [product, shape], like=out)


def quantized_rows(x: ir.Value, zero: int, add: Builder) -> tuple[ir.Value, ir.Value]:
    """Codes uint8 `[M, K]` of x, and the scale of each row, float32 `[M]`."""
    assert x.shape is not None
    dtype, rows = x.dtype, (x.shape[0],)
    sides = []
    for op, last, name in (("ReduceMax", CODES - zero, "above"), ("ReduceMin", -zero, "below")):
        end = add(op, [x, axis(add)], {"keepdims": 0}, dtype=dtype, shape=rows)
        step = add.constant(np.array(1 / last, np.float32), f"step_{name}_{zero}")
        sides.append(add("Mul", [end, step], dtype=dtype, shape=rows))
    least = add.constant(np.array(LEAST, np.float32), "least_scale")
    scales = add("Max", [*sides, least], dtype=dtype, shape=rows)
    count = add("Shape", [scales], dtype=ir.DataType.INT64, shape=(1,))
    value = {"value": ir.tensor(np.array([zero], np.uint8))}
    zeros = add("ConstantOfShape", [count], value, dtype=ir.DataType.UINT8, shape=rows)
    codes = add(
        "QuantizeLinear", [x, scales, zeros], {"axis": 0}, dtype=ir.DataType.UINT8, shape=x.shape
    )
    return codes, scales


def axis(add: Builder) -> ir.Value:
    """The last axis, as an input."""
    return add.constant(np.array([-1], np.int64), "last_axis")


def own(x: ir.Value, op: str, add: Builder) -> ir.Node | None:
    """The node of an op on x that an earlier product of this pass has in the same graph.

    One in a branch is no other graph's to read.
    """
    return next(
        (
            node
            for node in x.consumers()
            if node.op_type == op
            and node.graph is add.graph
            and node.metadata_props.get("surgery.pass") == add.maker
        ),
        None,
    )


def shared_codes(x: ir.Value, add: Builder) -> tuple[ir.Value, ir.Value] | None:
    """The codes and scales of x that an earlier product of this pass has."""
    known = own(x, "QuantizeLinear", add)
    if known is None:
        return None
    scales = known.inputs[1]
    assert scales is not None
    return known.outputs[0], scales


def stored(graph: ir.Graph, name: str, tensor: RowTensor) -> ir.Value:
    """An initializer; that of another product with the same weight is reused."""
    tensor.name = name
    return graph.initializers.get(name) or initializer(graph, name, tensor)
