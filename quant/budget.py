"""Bits where they pay: a format for each matrix, least loss in all, under a budget of bytes.

Each matrix offers choices, each with its bytes and its loss. Losses of different matrices must
be in one unit, such as the KL divergence that the matrix alone would cause, and count as
additive.

    start    every matrix takes its smallest choice (of several equally small, the best)
    hull     only choices on the lower convex hull of loss over bytes are considered: the next
             larger choice always saves less loss for each byte than the one before it
    spend    the step with the most loss saved for each byte, over all matrices, is taken if it
             still fits, until no step does. A step that does not fit ends its matrix.

This greedy choice is the best of all choices of the same size or smaller as long as every step
fitted; after the first that does not, its loss is above the best by at most what that one step
would save (the linear relaxation of the multiple-choice knapsack problem). Equal gains go to the
matrix that comes first: the result depends on nothing but the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from quant.blocks import BlockFormat

__all__ = ["Choice", "Spent", "spend"]


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix.

    Attributes:
        format: the block format; None leaves the matrix as it is.
        nbytes: what it takes, scales and zero points included (`BlockFormat.nbytes`).
        loss: what it costs, not negative.
    """

    format: BlockFormat | None
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Spent:
    """What `spend` chose.

    Attributes:
        choices: by matrix, in the order given.
        nbytes: of all of them.
        loss: of all of them.
        bits: `8 * nbytes` for each weight.
    """

    choices: dict[str, Choice]
    nbytes: int
    loss: float
    bits: float


def spend(offers: Mapping[str, Sequence[Choice]], weights: Mapping[str, int], bits: float) -> Spent:
    """Choose for every matrix.

    Args:
        offers: choices by matrix, at least one each.
        weights: number of weights by matrix, N * K.
        bits: the budget, bits for each weight over all matrices.

    Raises:
        ValueError: when a matrix has no choice, a loss is negative or NaN, or even the smallest
            choices exceed the budget.
    """
    for name, offered in offers.items():
        if not offered or not all(choice.loss >= 0 for choice in offered):
            raise ValueError(f"spend: {name} needs choices, each with a loss that is not negative.")
    hulls = {name: _hull(offered) for name, offered in offers.items()}
    total = sum(weights[name] for name in offers)
    allowed = int(bits * total / 8 + 1e-6)
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > allowed:
        raise ValueError(
            f"spend: the smallest choices take {8 * used / total:.3f} bits a weight, "
            f"more than the {bits:g} allowed."
        )
    steps = []
    for place, (name, hull) in enumerate(hulls.items()):
        for index, (here, there) in enumerate(pairwise(hull)):
            gain = (here.loss - there.loss) / (there.nbytes - here.nbytes)
            steps.append((-gain, place, index, name))
    taken = dict.fromkeys(hulls, 0)
    for _, _, index, name in sorted(steps):
        extra = hulls[name][index + 1].nbytes - hulls[name][index].nbytes
        if taken[name] == index and used + extra <= allowed:
            taken[name], used = index + 1, used + extra
    chosen = {name: hulls[name][index] for name, index in taken.items()}
    loss = sum(choice.loss for choice in chosen.values())
    return Spent(chosen, used, loss, 8 * used / total if total else 0.0)


def _hull(offered: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of loss over bytes, from the smallest choice to the best."""
    hull: list[Choice] = []
    for choice in sorted(offered, key=lambda c: (c.nbytes, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(here: Choice, there: Choice) -> float:
    """Loss saved for each byte more."""
    return (here.loss - there.loss) / (there.nbytes - here.nbytes)
