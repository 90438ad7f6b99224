"""Before and after, for the shapes in which families differ; and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shapes import SHAPES, feeds

from surgery.rewrite import view

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", SHAPES)
def test_golden(build, request, name):
    """The graph before, and after the passes."""
    shape, model = SHAPES[name], build(SHAPES[name].text)
    before, counts = view.text(model), []
    for work in shape.passes():
        work(model)
        counts.append(f"{work.name} {work.count}")
    found = f"== before\n{before}\n== after {', '.join(counts)}\n{view.text(model)}"
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-table", False):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    kept = file.read_text(encoding="utf-8") if file.is_file() else ""
    difference = view.diff(kept, found, (file.name, "now"))
    assert not difference, f"\n{difference}\nIf meant: pytest tests/families --update-table"


@pytest.mark.parametrize("name", SHAPES)
def test_numbers(build, runner, name):
    """The same numbers as before, at several sizes, on a graph without the exporter's metadata."""
    shape, model = SHAPES[name], build(SHAPES[name].text, module=None)
    before = runner(model)
    cases = [feeds(model, sizes, i) for i, sizes in enumerate(shape.sizes)]
    works = shape.passes()
    for work in works:
        work(model)
    assert tuple(work.count for work in works) == shape.sites
    after = runner(model)
    for case in cases:
        want, got = before(case), after(case)
        for value, array in want.items():
            kept = array[:, -1:] if shape.last else array
            np.testing.assert_allclose(got[value], kept, rtol=2e-5, atol=2e-6, err_msg=value)
