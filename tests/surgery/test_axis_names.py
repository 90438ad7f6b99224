"""Names of axes as expressions."""

from __future__ import annotations

import pytest
import sympy

from surgery.match import lengths
from surgery.match.lengths import expression, symbol


def test_words_are_not_parsed(monkeypatch):
    """A graph may have thousands of axes, nearly all of whose names are one word."""
    monkeypatch.setattr(lengths, "parse_expr", None)
    for name in ("sequence", "E", "pi", "lambda", "None", "_0"):
        assert expression(name, symbol) == symbol(name)


SUMS = ["past + sequence", "2*batch", "a/4 - 1", "(a + b)*c", "7", "-a", "E + pi", "a\n+ b", "N*S"]


@pytest.mark.parametrize("name", SUMS)
def test_sums_as_sympy_reads_them(name, monkeypatch):
    """Without what sympy does for each expression: to import all of itself."""
    words = {word: symbol(word) for word in lengths.WORD.findall(name)}
    wanted = sympy.sympify(name, locals=words)

    def fail(*_):
        raise AssertionError("sympy imports itself")

    monkeypatch.setattr("sympy.parsing.sympy_parser.exec", fail, raising=False)
    assert expression(name, symbol) == wanted


@pytest.mark.parametrize("name", ["a +", "floor(a)", "a b", "a, b", "1e9", "lambda - a", ""])
def test_what_is_no_expression(name):
    """None, and no error."""
    assert expression(name, symbol) is None
