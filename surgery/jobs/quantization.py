"""What a build says about its quantized weights: a table, and those that no plan covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
from rich.console import RenderableType
from rich.table import Table

from surgery.calibrate.plan import Plan, Row
from surgery.jobs.left_float import PRODUCTS, float_weights
from surgery.passes.quantized.blocks import PARTS, PlannedPass
from surgery.rewrite.contract import Pass
from surgery.rewrite.float_activations import INTEGER

BITS = {"MatMulNBits": "bits", "GatherBlockQuantized": "bits", "QMoE": "expert_weight_bits"}
"""Ops with weights in blocks, and the attribute with the bits of a code."""
ROWS = 10
"""Rows of the table: weights with most of the loss."""


def rest(models: Iterable[ir.Model], plan: Plan) -> list[dict[str, Any]]:
    """Quantized weights that no plan covers, such as a head and experts: rounded to nearest.

    Returns:
        For each its name, shape, bits, block and bytes, as plain data.
    """
    found: dict[str, dict[str, Any]] = {}
    known = {row.name for row in plan.rows} | {one.name for one in plan.experts}
    for model in models:
        for node in (node for graph in model.graphs() for node in graph):
            for one in integer(node) if node.op_type == INTEGER else in_blocks(model, node):
                if one["name"] not in known:
                    found[one["name"]] = one
    return list(found.values())


def integer(node: ir.Node) -> Iterator[dict[str, Any]]:
    """The weight of an integer product, which has one scale for each row."""
    codes = node.inputs[1]
    assert codes is not None and codes.shape is not None
    k, n = codes.shape.numpy()
    name = (codes.name or "").removesuffix(".codes")
    yield {"name": name, "shape": [n, k], "bits": 8, "block": k, "nbytes": n * (k + 4)}


def in_blocks(model: ir.Model, node: ir.Node) -> Iterator[dict[str, Any]]:
    """The weights of a node that are in blocks."""
    if node.op_type not in BITS:
        return
    for value in node.inputs:
        name = (value.name or "" if value is not None else "").removesuffix(".packed")
        if value is None or name == value.name:
            continue
        bits = node.attributes[BITS[node.op_type]].as_int()
        parts = [model.graph.initializers.get(f"{name}.{part}") for part in PARTS]
        tensors = [part.const_value for part in parts if part is not None]
        sizes = [tensor.nbytes for tensor in tensors if tensor is not None]
        shape = list(tensors[1].shape.numpy()[:-1]) if tensors[1] else []
        columns = sizes[0] * 8 // bits // math.prod(shape)
        yield {
            "name": name,
            "shape": [*shape, node.attributes.get_int("K", columns)],
            "bits": bits,
            "block": node.attributes["block_size"].as_int(),
            "nbytes": sum(sizes),
        }


def listed(model: ir.Model, works: Iterable[Pass]) -> dict[str, Any]:
    """What is known of a graph's quantized weights, as plain data.

    Args:
        model: the finished graph.
        works: the passes that ran.
    """
    plans = [work.followed for work in works if isinstance(work, PlannedPass)]
    plan = next((plan for plan in plans if isinstance(plan, Plan)), Plan({}, (), 0.0))
    return plan.data() | {"rounded": rest([model], plan)}


def summary(plan: Plan, models: Sequence[ir.Model]) -> list[RenderableType]:
    """The table of a calibrated plan, and sentences about weights that it does not cover."""
    told: list[RenderableType] = [table(plan)]
    unplanned = rest(models, plan)
    for bits in sorted({one["bits"] for one in unplanned}):
        of_these = [one for one in unplanned if one["bits"] == bits]
        size = sum(one["nbytes"] for one in of_these)
        first = short(of_these[0]["name"]) + (
            f" and {len(of_these) - 1} more" if of_these[1:] else ""
        )
        told.append(f"rounded to {bits} bits without calibration ({size / 1e6:,.1f} MB): {first}")
    if plan.experts:
        every = sum(one.shape[0] for one in plan.experts)
        own = sum(one.own for one in plan.experts)
        told.append(
            f"experts: {own:,} of {every:,} matrices calibrated on the tokens that reach them, the "
            f"others by mean squares"
        )
    kept = {row.name for row in plan.rows if row.bits is None}
    sizes = [
        size
        for model in models
        for name, size, node in float_weights(model)
        if node is not None and node.op_type in PRODUCTS and name not in kept
    ]
    if sizes:
        told.append(
            f"not quantized: {len(sizes)} matrices ({sum(sizes) / 1e6:,.1f} MB), routers among them"
        )
    return told


def table(plan: Plan) -> Table:
    """The weights with most of the loss, and the totals."""
    eight = sum(row.bits == 8 for row in plan.rows)
    kept = sum(row.bits is None for row in plan.rows)
    title = f"{plan.bits:.2f} bits a weight; {eight} of {len(plan.rows)} matrices in 8 bits"
    made = Table(title=title + (f", {kept} in float" if kept else ""), title_justify="left")
    made.add_column("weights with most of the loss", overflow="fold")
    for heading in ("shape", "bits", "output error", "share of the loss"):
        made.add_column(heading, justify="right")
    chosen = sorted(plan.rows, key=lambda row: -row.loss)[:ROWS]
    for row in chosen:
        made.add_row(*cells(plan, row))
    others = 1 - sum(plan.share(row) for row in chosen)
    made.add_section()
    made.add_row(f"{len(plan.rows) - len(chosen)} others", "", "", "", f"{max(others, 0):.1%}")
    made.caption = f"loss estimated: {plan.loss:.2e} nats a token (KL divergence), if losses add up"
    return made


def cells(plan: Plan, row: Row) -> tuple[str, ...]:
    """A row of the table."""
    error = "" if row.error is None else f"{row.error:.2%}"
    n, k = row.shape
    return short(row.name), f"{n} x {k}", str(row.bits or "float"), error, f"{plan.share(row):.1%}"


def short(name: str) -> str:
    """A weight's name without what all of them have in common."""
    return name.removesuffix(".weight").rpartition("layers.")[2] or name
