"""Passes on models that nobody tuned them for."""

from __future__ import annotations

import pytest
from export import GRAPHS
from table import TABLE, kept, render

pytestmark = pytest.mark.nightly  # exports 27 models, which takes minutes

NAMES = list(GRAPHS)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_unchanged(result, name):
    """What PyTorch computes, on shapes that the export has not seen."""
    assert result(name).error < 5e-6


@pytest.mark.parametrize("name", [n for n in NAMES if "matmul_nbits" in GRAPHS[n].sites])
def test_eight_bits(result, name):
    """Weights of 8 bits: close, but not equal."""
    assert 1e-6 < result(name).error_8bit < 0.06


@pytest.mark.parametrize("name", NAMES)
def test_sites(result, name):
    """Every pass acts at each place that the architecture has, and nowhere else.

    A pass that declines what looks like a place for it is listed in the family's `refused`, and
    says why.
    """
    found = result(name)
    assert {k: n for k, n in found.fired.items() if n} == GRAPHS[name].sites
    assert set(found.reasons) == set(GRAPHS[name].refused)


def test_table(result, request):
    """The page of models shows what is measured."""
    text = render({name: result(name) for name in NAMES}, kept())
    if request.config.getoption("--update-table", False):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text, "pytest tests/families --update-table"
