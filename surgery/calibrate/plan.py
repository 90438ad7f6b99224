"""Which weight gets how many bits, why, and where its blocks come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

import quant
from surgery.base.errors import UserError
from surgery.calibrate.roles import SENSITIVITY, role
from surgery.calibrate.store import Store
from surgery.match.products import Product
from surgery.rewrite.weights import Source

EIGHT = quant.BlockFormat(8, 128)
"""The format of weights that 4 bits would hurt most."""


def base_format(k: int, symmetric: bool = False, block: int = 128) -> quant.BlockFormat:
    """The 4-bit format of rows of `k` weights: the largest block up to `block` that divides them.

    Blocks of 128 have the fastest kernels and the fewest scales; a block that does not divide the
    row would pad it. Rows that no block divides are padded to blocks of 32.
    """
    fitting = (size for size in (256, 128, 64, 32, 16) if size <= block and k % size == 0)
    return quant.BlockFormat(4, next(fitting, min(block, 32)), symmetric)


@dataclass(frozen=True)
class Row:
    """A weight in the table of a plan.

    Attributes:
        name: of the weight.
        shape: N and K.
        bits: bits of a code; None where it stays in float.
        block: weights that share a scale.
        nbytes: bytes of codes, scales and zero points.
        loss: what the chosen format is estimated to cost, in nats a token where it was measured.
        error: error of the product's output over the output, both as root mean squares; None
            where no calibration measured it.
        worst: blocks whose own errors weigh most in that of the output; none were measured
            without a calibration.
    """

    name: str
    shape: tuple[int, int]
    bits: int | None
    block: int | None
    nbytes: int
    loss: float
    error: float | None = None
    worst: tuple[quant.BlockError, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A weight of all experts of a layer, in the one format that they have.

    Attributes:
        name: of the weight.
        shape: E, N and K.
        bits: bits of a code.
        block: weights that share a scale.
        nbytes: bytes of codes, scales and zero points.
        error: error of the products' outputs over the outputs, both as root mean squares.
        own: experts whose codes their own tokens decided; the others were too seldom chosen.
    """

    name: str
    shape: tuple[int, int, int]
    bits: int
    block: int
    nbytes: int
    error: float
    own: int


@dataclass(frozen=True)
class Plan:
    """The formats of a decoder's linear weights.

    Attributes:
        formats: in blocks, by weight; None leaves one in float.
        rows: the table, in the order of the graph.
        bits: bits for each weight that is quantized, scales and zero points included.
        measured: whether losses come from this checkpoint's own activations.
        store: where calibrated blocks lie; None where blocks are rounded as they are written.
        kept: the format in which a weight's blocks were kept.
        scales: dtype of kept scales.
        experts: weights of experts that were calibrated.
    """

    formats: Mapping[str, quant.BlockFormat | None]
    rows: tuple[Row, ...]
    bits: float
    measured: bool = False
    store: Store | None = None
    kept: Mapping[str, quant.BlockFormat] = field(default_factory=dict)
    scales: ir.DataType = ir.DataType.FLOAT
    experts: tuple[Experts, ...] = ()

    def stack(self, name: str, format: quant.BlockFormat) -> Source | None:
        """Calibrated blocks of experts [E, N, K], or None where they are to be rounded."""
        found = next((one for one in self.experts if one.name == name), None)
        if self.store is None or found is None or self.kept.get(name) != format:
            return None
        experts, n, k = found.shape
        return self.store.source(name, format, n, k, self.scales, experts)

    def source(self, name: str, n: int, k: int) -> Source | None:
        """Calibrated blocks of a weight [N, K], or None where it is to be rounded."""
        format = self.formats.get(name)
        if self.store is None or format is None or self.kept.get(name) != format:
            return None
        return self.store.source(name, format, n, k, self.scales)

    @property
    def loss(self) -> float:
        """What all weights are estimated to cost together; losses are taken to add up."""
        return sum(row.loss for row in self.rows)

    def share(self, row: Row) -> float:
        """A weight's share of the loss, 0 to 1."""
        return row.loss / self.loss if self.loss else 0.0

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "bits": round(self.bits, 4),
            "measured": self.measured,
            "loss": self.loss,
            "weights": [asdict(row) | {"share": self.share(row)} for row in self.rows],
            **({"experts": [asdict(one) for one in self.experts]} if self.experts else {}),
        }


def choose(
    sizes: Mapping[str, tuple[int, int]],
    offers: Mapping[str, Sequence[quant.Choice]],
    bits: float,
    keep: str | None,
    strict: bool = True,
) -> dict[str, quant.Choice]:
    """Spend a budget on weights; those that match `keep` stay in float and do not count.

    Args:
        sizes: N and K by weight.
        offers: formats of each weight, with bytes and loss.
        bits: the budget, bits for each weight.
        keep: a regular expression.
        strict: whether a budget below the smallest formats is an error; otherwise each weight has
            its smallest.

    Raises:
        UserError: the budget is below the smallest formats, or the pattern is no regular
            expression.
    """
    left = kept(sizes, keep)
    offered = {name: offers[name] for name in sizes if name not in left}
    weights = {name: n * k for name, (n, k) in sizes.items()}
    total = sum(weights[name] for name in offered)
    if offered and not strict:
        least = sum(min(choice.nbytes for choice in found) for found in offered.values())
        bits = max(bits, 8 * least / total)
    try:
        spent = quant.spend(offered, weights, bits)
    except ValueError as e:
        raise UserError(f"--bits {bits:g}: {str(e).removeprefix('spend: ')}") from e
    float_ = quant.Choice(None, 0, 0.0)
    return {name: float_ if name in left else spent.choices[name] for name in sizes}


def kept(names: Iterable[str], keep: str | None) -> set[str]:
    """The names that match a pattern of weights that stay in float; none without a pattern.

    Raises:
        UserError: the pattern is no regular expression.
    """
    try:
        pattern = re.compile(keep) if keep else None
    except re.error as e:
        raise UserError(f"--keep {keep}: no regular expression: {e}.") from e
    return {name for name in names if pattern is not None and pattern.search(name)}


def total_bits(sizes: Mapping[str, tuple[int, int]], chosen: Mapping[str, quant.Choice]) -> float:
    """Bits for each quantized weight."""
    counted = [name for name, choice in chosen.items() if choice.format is not None]
    weights = sum(int(np.prod(sizes[name])) for name in counted)
    return 8 * sum(chosen[name].nbytes for name in counted) / weights if weights else 0.0


def from_structure(
    products: Sequence[Product],
    bits: float,
    keep: str | None = None,
    scales: ir.DataType = ir.DataType.FLOAT,
    symmetric: bool = False,
    block: int = 128,
    strict: bool = True,
) -> Plan:
    """A plan without a forward pass: losses are those that roles cost on another model.

    Weights of the first three layers and of the last one count double, as they did there.

    Args:
        products: with the weights to choose formats for, in the order of the graph.
        bits: the budget, bits for each weight.
        keep: pattern of weights that stay in float.
        scales: dtype of scales.
        symmetric: whether 4-bit blocks go without zero points.
        block: most 4-bit weights that share a scale.
        strict: as in `choose`.

    Raises:
        UserError: as `choose`.
    """
    sizes, offers = {}, {}
    for place, product in enumerate(products):
        n, k = product.source.parts[0][1]
        edge = place < 3 * len(products) // 30 or place >= len(products) - len(products) // 30
        loss = SENSITIVITY[role(product)] * n * k / 1e9 * (2 if edge else 1)
        base = base_format(k, symmetric, block)
        sizes[product.name] = n, k
        offers[product.name] = [
            quant.Choice(base, base.nbytes(n, k, scales.numpy()), loss),
            quant.Choice(EIGHT, EIGHT.nbytes(n, k, scales.numpy()), loss / 256),
        ]
    chosen = choose(sizes, offers, bits, keep, strict)
    rows = tuple(row(name, sizes[name], chosen[name]) for name in sizes)
    formats = {name: choice.format for name, choice in chosen.items()}
    return Plan(formats, rows, total_bits(sizes, chosen))


def in_eight_bits(products: Sequence[Product], scales: ir.DataType = ir.DataType.FLOAT) -> Plan:
    """A plan with 8 bits for every weight, which loses too little to be worth measuring.

    Blocks have 128 weights, or the most below that divide a row.

    Args:
        products: with the weights to choose formats for, in the order of the graph.
        scales: dtype of scales.
    """
    sizes, chosen = {}, {}
    for product in products:
        n, k = product.source.parts[0][1]
        form = replace(EIGHT, block=base_format(k, block=EIGHT.block).block)
        sizes[product.name] = n, k
        chosen[product.name] = quant.Choice(form, form.nbytes(n, k, scales.numpy()), 0.0)
    rows = tuple(row(name, sizes[name], chosen[name]) for name in sizes)
    formats = {name: choice.format for name, choice in chosen.items()}
    return Plan(formats, rows, total_bits(sizes, chosen))


def in_rows(products: Sequence[Product]) -> Plan:
    """The same with one float32 scale for each row, as `matmul_int8` has it."""
    rows = []
    for product in products:
        n, k = product.source.parts[0][1]
        rows.append(Row(product.name, (n, k), 8, k, n * (k + 4), 0.0))
    weights = sum(n * k for n, k in (one.shape for one in rows))
    bits = 8 * sum(one.nbytes for one in rows) / weights if weights else 0.0
    return Plan({}, tuple(rows), bits)


def row(
    name: str,
    shape: tuple[int, int],
    choice: quant.Choice,
    error: float | None = None,
    worst: tuple[quant.BlockError, ...] = (),
) -> Row:
    """The row of a choice."""
    form = choice.format
    bits, block = (None, None) if form is None else (form.bits, form.block)
    return Row(name, shape, bits, block, choice.nbytes, choice.loss, error, worst)
