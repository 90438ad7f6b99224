"""A decoder with a branch for long inputs, as if every input were long, or none.

The branches have different weights, so that a prompt read at once and the same prompt read token
by token differ by more than the order of sums. Each branch alone is held to what any other decoder
is held to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from surgery.rewrite.two_forms import LIMIT
from surgery.verify.opened import Opened

LONG, SHORT = "all inputs as long ones", "all inputs as short ones"
ALWAYS, NEVER = 1, 1 << 40
"""Positions from which an input is long."""


def forms(package: Opened) -> tuple[str, ...]:
    """`SHORT` and `LONG` where the decoder has a branch for each; else one form without a name."""
    return (SHORT, LONG) if LIMIT in package.graphs["decoder"].graph.initializers else ("",)


def labelled(what: str, form: str) -> str:
    """What a finding is about, with the form of the decoder if it has several."""
    return f"{what}, {form}" if form else what


def as_form(form: str) -> Callable[[onnx.GraphProto], None]:
    """What changes a decoder to one form of it."""

    def change(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if form and tensor.name == LIMIT:
                limit = np.array([ALWAYS if form == LONG else NEVER], np.int64)
                tensor.CopyFrom(onnx.numpy_helper.from_array(limit, LIMIT))

    return change
