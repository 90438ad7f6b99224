"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        what: the thing that was checked.
        note: what was measured.
        problem: what is wrong, in one line; empty where nothing is.
    """

    what: str
    note: str = ""
    problem: str = ""


def same(what: str, found: object, expected: object, source: str) -> Finding:
    """A finding that two things agree.

    Args:
        what: the thing.
        found: its value.
        expected: the value that it must have.
        source: where the expected value comes from.
    """
    if found == expected:
        return Finding(what, f"{found}")
    return Finding(what, problem=f"is {found}, {source} says {expected}")


def close(what: str, difference: float, scale: float, tolerance: float) -> Finding:
    """A finding that numbers agree: `difference <= tolerance * scale`; NaN does not."""
    note = f"max difference {difference:.1e} (largest value {scale:.1f})"
    if difference <= tolerance * scale:
        return Finding(what, note)
    return Finding(what, problem=f"{note}, {tolerance * scale:.1e} allowed")
