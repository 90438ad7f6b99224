"""Arithmetic on lengths: numbers, and expressions in the names of a graph's free axes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import onnx_ir as ir
import sympy
from sympy.parsing.sympy_parser import TokenError, parse_expr

Length: TypeAlias = int | sympy.Expr | None
"""A number, an expression such as `past + sequence`, or None where nothing is known."""
Lengths: TypeAlias = tuple[Length, ...]

WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
ARITHMETIC = re.compile(r"(?:[A-Za-z_]\w*+|\d++(?!\w)|[\s+*/()-])++", re.ASCII)
"""What is read as an expression: sympy would evaluate anything else as Python, and a number such
as 1e999999999 digit by digit."""
NAMES = {
    name: getattr(sympy, name) for name in ("Float", "Function", "Integer", "Lambda", "Symbol")
}
"""What sympy's parser writes into an expression. Left to itself, it imports all of sympy for each
expression, which takes most of a millisecond."""
LONGEST = 64
"""Characters up to which a name is read as an expression."""


@lru_cache(maxsize=4096)
def parsed(name: str) -> int | sympy.Expr:
    """The expression that the name of an axis spells, or a symbol of that name."""
    if len(name) <= LONGEST and "**" not in name:
        found = expression(name, symbol)
        if found is not None:
            return plain(found)
    return symbol(name)


def expression(name: str, symbol: Callable[[str], sympy.Symbol]) -> sympy.Expr | None:
    """The sum, product or quotient of axes that a name spells; None if it spells none.

    Args:
        name: of an axis.
        symbol: makes the symbol of a word in it.
    """
    if WORD.fullmatch(name):  # nearly every name
        return symbol(name)
    if not ARITHMETIC.fullmatch(name):
        return None
    words = {word: symbol(word) for word in WORD.findall(name)}
    try:
        found = parse_expr(name.replace("\n", ""), words, global_dict=dict(NAMES))
    except (TokenError, SyntaxError, TypeError, AttributeError):
        return None
    return found if isinstance(found, sympy.Expr) else None


def symbol(name: str) -> sympy.Symbol:
    """A free axis."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def plain(length: sympy.Expr | int) -> int | sympy.Expr:
    """A number as Python's own."""
    if isinstance(length, int):
        return length
    return int(length) if length.is_Integer else length


def length_of(dim: int | ir.SymbolicDim) -> Length:
    """A dimension of a shape."""
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else parsed(str(dim.value))


def lengths_of(shape: ir.Shape | None) -> Lengths | None:
    """A shape; None where the rank is unknown."""
    return None if shape is None else tuple(length_of(dim) for dim in shape)


def spelled(length: Length) -> int | str | None:
    """A length as a shape holds it."""
    return length if length is None or isinstance(length, int) else str(length)


@lru_cache(maxsize=16384)
def equal(a: Length, b: Length) -> bool:
    """Whether two lengths are surely the same."""
    if a is None or b is None:
        return False
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return bool(a == b or sympy.expand(a - b) == 0)


def product(lengths: Iterable[Length]) -> Length:
    """The number of elements."""
    total: int | sympy.Expr = 1
    for length in lengths:
        if length is None:
            return None
        total = total * length
    return plain(total)


@lru_cache(maxsize=16384)
def quotient(a: Length, b: Length) -> Length:
    """The length that b times makes a; None where that is not sure."""
    if a is None or b is None or b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    found = sympy.sympify(a) / b
    if found.as_numer_denom()[1] != 1:
        found = sympy.cancel(found)
        if found.as_numer_denom()[1] != 1:
            return None
    return plain(found)


def broadcast(shapes: Sequence[Lengths | None]) -> Lengths | None:
    """The shape of an elementwise result.

    Of two names that differ, the first stands: either both are one length, or one of them is 1 in
    every run.
    """
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(together(column) for column in zip(*padded, strict=True))


def together(column: Sequence[Length]) -> Length:
    """The length that some lengths, 1 among them, broadcast to."""
    wide = [length for length in column if length != 1]
    numbers = [length for length in wide if isinstance(length, int)]
    if numbers:
        return numbers[0]
    named = [length for length in wide if length is not None]
    if len(named) < len(wide):
        return None
    return named[0] if named else 1
