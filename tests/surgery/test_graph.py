"""The library: load, run passes, look at a part, compare."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import surgery
from surgery.base.errors import UserError
from surgery.graph import Graph
from surgery.passes import TIDY, Silu


@pytest.fixture(scope="module")
def folded(raw: Path) -> Graph:
    return surgery.load(raw / "decoder.onnx").run(*TIDY)


def test_passes_give_new_graphs(folded: Graph) -> None:
    before = str(folded)
    done = folded.run(Silu())
    assert str(folded) == before
    lines = folded.diff(done).splitlines()
    layers = done.outcomes[-1].sites
    assert layers > 1
    assert sum(line.startswith("+") and "QuickGelu" in line for line in lines) == layers
    assert sum(line.startswith("-%") for line in lines) == 3 * layers, "two nodes and a reader"


def test_a_region_is_text_and_a_drawing(folded: Graph) -> None:
    region = folded.region("layers.0.mlp")
    assert "# model.language_model.layers.0.mlp.act_fn\n" in str(region)
    assert "layers.1" not in str(region)
    drawing = region._repr_svg_()
    ET.fromstring(drawing)
    assert ">Sigmoid<" in drawing and drawing.count("<rect") < 20


def test_an_unknown_module_is_an_error(folded: Graph) -> None:
    with pytest.raises(UserError, match="no node comes from"):
        folded.region("layers.99")


def test_notebooks_show_graphs_and_diffs(folded: Graph) -> None:
    assert "<td>MatMul</td>" in folded._repr_html_()
    diff = folded.diff(folded.run(Silu()))
    assert "QuickGelu" in diff._repr_html_()


def test_drawings_are_the_same_in_every_process(raw: Path) -> None:
    code = (
        "from surgery import load\n"
        f"print(load({str(raw / 'vision.onnx')!r}).region('blocks.0.attn')._repr_svg_())"
    )
    drawings = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(surgery.__file__).parents[1])},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(drawings) == 1


def test_a_name_that_the_library_has_not() -> None:
    with pytest.raises(AttributeError):
        _ = surgery.nothing
