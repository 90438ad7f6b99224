"""Passes on models that nobody tuned them for."""

from __future__ import annotations

import pytest
from export import GRAPHS
from table import TABLE, kept, render

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
    """Every pass acts where the architecture has a place for it, or says why not."""
    assert set(GRAPHS[name].refused) <= set(result(name).reasons)
    found = result(name)
    unexpected = {k: n for k, n in found.fired.items() if n != found.expected.get(k, 0)}
    unexplained = {k: n for k, n in unexpected.items() if k not in found.reasons}
    assert not unexplained


def test_table(result, request):
    """The page of models shows what is measured."""
    text = render({name: result(name) for name in NAMES}, kept())
    if request.config.getoption("--update-table", False):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text, "pytest tests/families --update-table"
