"""The generic recipes on graphs as exporters write them; the table that says so.

By default: of the rows of the table those of optimum-onnx and TorchScript's exporter, and those of
two models of torch.onnx. `--every-exporter` takes every graph, also those that have no row yet;
torch.export needs minutes for them.
"""

from __future__ import annotations

import pytest
from cells import CELLS, QUICK, Cell
from exporters_table import TABLE, kept_rows, render, row, times
from judge import Verdict, by_onnxruntime, by_onnxscript, ours, source, verdict
from times import measured

pytestmark = pytest.mark.nightly  # exports dozens of graphs, which takes minutes

COUNTED = ("GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding", "norms", "QuickGelu",
           "SkipSimplifiedLayerNormalization", "SkipLayerNormalization")  # fmt: skip

MORE = {"SigLIP": 1, "Whisper's encoder": 3}
"""Nodes that we leave beyond the other tools: onnxscript joins the three projections."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--every-exporter", False)
        shown = kept_rows()
        some = [c for c in CELLS if c.name in shown and (c.quick or c.subject.name in QUICK)]
        cells = CELLS if whole else some
        metafunc.parametrize("cell", cells, ids=[c.name for c in cells], scope="module")


@pytest.fixture(scope="module")
def cache(request):
    assert request.config.cache is not None
    return request.config.cache.mkdir("exporters")


@pytest.fixture(scope="module")
def judged(cell: Cell, cache) -> tuple[Verdict, Verdict]:
    """The graph as it came, and after our recipe."""
    path = cell.path(cache)
    return source(path), ours(path, cell.subject.recipe, cell.feeds())


def test_fused(cell, judged):
    """Every place that the architecture has."""
    _, after = judged
    expected = {op: n for op, n in cell.subject.expected.items() if op in COUNTED}
    assert {op: after.fused.get(op, 0) for op in expected} == expected


def test_outputs(cell, judged):
    """The source graph's outputs, on batches, pasts and paddings that the export has not seen."""
    _, after = judged
    assert after.error is not None and after.error < 1e-5


def test_row(cell, judged, cache, request):
    """The row of the table is what is measured; times are measured only where that is asked for."""
    before, after = judged
    rows = kept_rows()
    if request.config.getoption("--update-table", False):
        path = cell.path(cache)
        others = (verdict(by_onnxscript(path)), verdict(by_onnxruntime(path)))
        rows[cell.name] = row(cell, before, after, others, rows.get(cell.name))
        TABLE.write_text(render(rows), encoding="utf-8")
    if request.config.getoption("--update-times", False):
        rows[cell.name][-1] = times(measured(cell, cache))
        TABLE.write_text(render(rows), encoding="utf-8")
    found = rows[cell.name]
    assert found == row(cell, before, after, None, found), "pytest tests/families --update-table"


def test_no_worse_than_others(cell):
    """At most as many nodes as the better of the two other tools leaves, but for `MORE`."""
    _, _, _, _, nodes, script, runtime, *_ = kept_rows()[cell.name]
    best = min(int(script.split()[0]), int(runtime.split()[0]))
    assert int(nodes) <= best + MORE.get(cell.subject.name, 0)
