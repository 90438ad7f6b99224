"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        note: what was found, if there is no problem.
        problem: what is wrong, in one line. Empty if nothing is.
    """

    what: str
    note: str = ""
    problem: str = ""


def same(what: str, found: object, expected: object, source: str) -> Finding:
    """Check that a value is the expected one.

    Args:
        what: name of the value.
        found: the value.
        expected: the value that it must have.
        source: where the expected value comes from.
    """
    if found == expected:
        return Finding(what, f"{found}")
    return Finding(what, problem=f"is {found}, but {source} requires {expected}")


def close(what: str, difference: float, scale: float, tolerance: float) -> Finding:
    """Check that `difference <= tolerance * scale`. NaN does not pass.

    Args:
        what: what was compared.
        difference: largest absolute difference.
        scale: largest absolute value of the reference.
        tolerance: largest allowed ratio of the two.
    """
    note = f"max difference {difference:.1e} (largest value {scale:.1f})"
    if difference <= tolerance * scale:
        return Finding(what, note)
    return Finding(what, problem=f"{note}, at most {tolerance * scale:.1e} is allowed")
