"""The formats of quantized weights for the report: a row for each kind, a cell for each layer."""

from __future__ import annotations

import re
from typing import Any

LAYER = re.compile(r"(.*?)\.?layers\.(\d+)\.(.+?)(?:\.weight)?$")
"""A name with the number of a layer."""
WORST = 8
"""Weights that are listed under the picture."""


def plan(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page shows of a plan, or None without one or with no weight of a layer.

    Args:
        data: a plan as plain data (`surgery.calibrate.plan.Plan.data`).
    """
    weights = [] if data is None else data["weights"]
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for weight in weights:
        found = LAYER.match(weight["name"])
        if found:
            cells.setdefault(found[3], {})[int(found[2])] = cell(weight)
    if data is None or not cells:
        return None
    layers = sorted({layer for row in cells.values() for layer in row})
    most = max(weights, key=lambda w: w["share"])["share"] or 1.0
    for row in cells.values():
        for one in row.values():
            one["height"] = round(100 * one["share"] / most)
    worst = sorted(weights, key=lambda w: -w["share"])[:WORST]
    return {
        "title": f"{data['bits']:.2f} bits a weight",
        "basis": (
            "losses measured on this checkpoint's activations"
            if data["measured"]
            else "losses taken from the weight's role in its layer, without a forward pass"
        ),
        "layers": layers,
        "rows": [
            {"name": name, "cells": [row.get(layer) for layer in layers]}
            for name, row in sorted(cells.items())
        ],
        "worst": [
            {"name": weight["name"], "share": 100 * weight["share"] / most, "text": text(weight)}
            for weight in worst
        ],
    }


def cell(weight: dict[str, Any]) -> dict[str, Any]:
    """One weight: the class of its format, its share of the loss, and what a pointer shows."""
    return {
        "kind": f"b{weight['bits']}" if weight["bits"] else "float",
        "share": weight["share"],
        "text": f"{weight['name']}: {text(weight)}",
    }


def text(weight: dict[str, Any]) -> str:
    """The format, the error and the share of the loss of a weight in words."""
    parts = [
        f"{weight['bits']} bits, blocks of {weight['block']}" if weight["bits"] else "float",
        f"{weight['shape'][0]} x {weight['shape'][1]}",
    ]
    if weight["error"] is not None:
        parts.append(f"output error {weight['error']:.2%}")
    if weight["worst"]:
        block = weight["worst"][0]
        place = f"row {block['row']:,}, block {block['block']:,}"
        parts.append(f"worst block {place}: {block['share']:.2%} of the error")
    parts.append(f"{weight['share']:.1%} of the loss")
    return ", ".join(parts)
