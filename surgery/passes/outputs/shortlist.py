"""A head in 8 bits that reads the rows of a few tokens only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

import quant
from surgery.passes.quantized.blocks import block_values
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.shortlists import DRAFT, TOKENS
from surgery.rewrite.weights import Quantized, RowTensor

FORMAT = quant.BlockFormat(4, 128, symmetric=True)
"""Of the weight that chooses tokens: the one that kernels read fastest."""
LARGE = 16
"""A vocabulary is worth a choice from so many times the tokens that are chosen."""


@dataclass(frozen=True)
class Head:
    """The product that makes logits.

    Attributes:
        x: what is multiplied, `[B, 1, H]`.
        packed: codes of the weight in 8 bits.
        name: of the weight.
        blocks: the weight in 8 bits, `[V, H]`.
    """

    x: ir.Value
    packed: ir.Value
    name: str
    blocks: Quantized


class Shortlist(NodePass[Head]):
    """A head in 4 bits chooses the likeliest tokens, one in 8 bits computes their logits.

    before  logits [B, 1, V] = MatMulNBits<bits = 8>(x [B, 1, H], weight.packed, weight.scales)
    after   draft [B, 1, V] = MatMulNBits<bits = 4>(x, weight.draft.packed, weight.draft.scales)
            ids [B, 1, T] = TopK(draft) ; rows = GatherBlockQuantized(weight.packed, ids, scales)
            logits = ScatterElements(draft, ids, MatMul(rows [B, 1, T, H], x))
    keeps   the logits of the T likeliest tokens, with activations that are not rounded; all others
            are those of 4 bits, as if the head had 4
    not     more positions than one, whose rows would not fit into memory; rows that are not whole
            blocks; vocabularies of less than 16 T tokens; a weight that another node reads
    why     a sampler looks at few tokens (top_k is 20 for Qwen3-VL), but every token that is made
            reads the whole head, a quarter of the bytes of a 2B model; this saves half of it.
            Source: SVD-softmax (Shim, Lee, Choi, Boo and Sung, NIPS 2017), where a decomposition
            takes the place of 4 bits
    """

    name = "shortlist"
    needs = ("last_logits", "matmul_nbits")
    anchors = ("MatMulNBits",)

    def __init__(
        self,
        tokens: int = 256,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        expect: int | None = None,
    ) -> None:
        """Choose the size.

        Args:
            tokens: T, how many are chosen.
            wanted: whether a weight is that of a head, by its name.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.tokens, self.wanted = tokens, wanted

    def match(self, node: ir.Node, m: Matcher) -> Head:
        """A product of one position with a weight that is rounded to 8 bits as it is written."""
        x, packed, *more = node.inputs
        assert x is not None and packed is not None
        name = (packed.name or "").removesuffix(".packed")
        m.check(self.wanted(name), "a head", name)
        bits = node.attributes.get_int("bits", 4)
        m.check(bits == 8, "a weight in 8 bits", bits)
        m.check(not any(more[2:]), "a product without groups and bias", len(node.inputs))
        m.rank(x, 3)
        assert x.shape is not None
        m.check(x.shape[1] == 1, "one position", x.shape)
        tensor = packed.const_value
        source = tensor.source if isinstance(tensor, RowTensor) else None
        m.check(isinstance(source, Quantized), "a weight of the checkpoint", packed.name)
        assert isinstance(source, Quantized)
        m.check(len(packed.consumers()) == 1, "one product", len(packed.consumers()))
        v, k = source.source.parts[0][1]
        m.check(k % source.format.block == 0, f"rows of blocks of {source.format.block}", k)
        m.check(v >= LARGE * self.tokens, f"{LARGE * self.tokens:,} tokens or more", v)
        return Head(x, packed, name, source)

    def rewrite(self, node: ir.Node, found: Head, add: Builder) -> None:
        """Compute all logits in 4 bits, then those of the likeliest tokens once more."""
        out, x, blocks = node.outputs[0], found.x, found.blocks
        dtype = blocks.scales
        assert x.shape is not None
        b, _, k = x.shape
        small = Quantized(blocks.source, FORMAT, dtype)
        name = f"{found.name}{DRAFT}"
        attributes = {
            "N": blocks.source.parts[0][1][0],
            "K": k,
            "bits": FORMAT.bits,
            "block_size": FORMAT.block,
            "accuracy_level": node.attributes.get_int("accuracy_level", 0),
        }
        inputs = [x, *block_values(add.main, name, small)]
        draft = add("MatMulNBits", inputs, attributes, domain="com.microsoft", like=out)
        count = add.constant(np.array([self.tokens], np.int64), TOKENS)
        top = add.node("TopK", [draft, count], {"axis": -1, "sorted": 0}, outputs=2)
        likeliest, ids = top.outputs
        listed = ir.Shape((b, 1, self.tokens))
        likeliest.type, likeliest.shape = ir.TensorType(dtype), listed
        ids.type, ids.shape = ir.TensorType(ir.DataType.INT64), listed
        del add.main.initializers[found.packed.name or ""]  # its codes by rows have the name
        packed, *scales = block_values(add.main, found.name, blocks, flat=True)
        attributes = {
            "bits": blocks.format.bits,
            "block_size": blocks.format.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        rows = add(
            "GatherBlockQuantized", [packed, ids, *scales], attributes,
            domain="com.microsoft", dtype=dtype, shape=(b, 1, self.tokens, k),
        )  # fmt: skip
        upright, flat = (
            add.constant(np.array(shape, np.int64), f"ints_{name}")
            for shape, name in (([0, 1, -1, 1], "0_1_-1_1"), ([0, 1, -1], "0_1_-1"))
        )
        column = add("Reshape", [x, upright], dtype=dtype, shape=(b, 1, k, 1))
        product = add("MatMul", [rows, column], dtype=dtype, shape=(b, 1, self.tokens, 1))
        exact = add("Reshape", [product, flat], dtype=dtype, shape=listed)
        replace(out, add("ScatterElements", [draft, ids, exact], {"axis": -1}, like=out))
