"""The table of exporters, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cells import CELLS, Cell
from fixed import FixedDecoder
from judge import ATTENTIONS, Verdict

TABLE = Path(__file__).parent / "EXPORTERS.md"
COLUMNS = ("model", "exporter", "attention", "nodes", "ours", "onnxscript", "onnxruntime",
           "difference", "time")  # fmt: skip
HEAD = """\
# Graphs as exporters write them

Two-layer random models at published head widths, exported with each exporter's defaults and
transformers' own attention, weights where torch's saver puts them. `attention`: layers whose
attention became GroupQueryAttention or MultiHeadAttention, of those that the model has. Nodes are
those of the graph as it came, after our generic recipe, after
`onnxscript.rewriter.ort_fusions.optimize_for_ort` and after `onnxruntime.transformers.optimizer`
(the kind of model that leaves the fewest); in brackets the attentions that each fused. The
difference is the largest of all outputs to those of the source graph, relative to the largest
number, over batch 1 and 2, with and without past, padded on the right. Made by
`pytest tests/families/test_exporters.py --nightly --every-exporter --update-table`.

`time` is one run of our graph relative to one of onnxscript's and to one of onnxruntime's, below 1
where ours is faster: one token behind 256 others for decoders, one picture, sound or text of 128
tokens otherwise, on one thread of a CPU; medians over rounds in turns, which the same command
measures with `--update-times` in place of `--update-table`. `-` stands for what was not measured, or
does not run.

`transformers` is the exporter in that library, `transformers.exporters`; its own fusions for a CPU
leave 161 nodes of Qwen3, 79 of SigLIP and 113 of BERT. A StaticCache has a fixed length; where the
mask is an input of the graph, as in that exporter's own graph for it, the pass `fixed_cache`
declines: the mask may hide any key.

In SigLIP and Whisper's encoder onnxscript leaves fewer nodes: it joins the three projections of an
attention in onnxruntime's `Attention`. That op took 0.92 to 1.04 of the time of three products and
`MultiHeadAttention` over 50 positions, and 1.06 to 1.11 over 1500, so we do not join them.
"""
GROUPS = """
## Attentions by exporter

`before` are those that the recipes fused in these graphs without the passes `shapes`, `lengths`,
`attention_heads` and `folded_attention`, which 0.1 has.

"""
BEFORE = {
    ("sdpa, torch.onnx", "decoders"): 0,
    ("sdpa, torch.onnx, opset 23", "decoders"): 0,
    ("sdpa, TorchScript, opset 17", "decoders"): 0,
    ("eager, torch.onnx", "decoders"): 0,
    ("eager, torch.onnx, opset 23", "decoders"): 1,
    ("eager, TorchScript, opset 17", "decoders"): 0,
    ("optimum-onnx 0.1", "decoders"): 0,
    ("sdpa, torch.onnx", "encoders"): 0,
    ("sdpa, torch.onnx, opset 23", "encoders"): 8,
    ("sdpa, TorchScript, opset 17", "encoders"): 0,
    ("eager, torch.onnx", "encoders"): 6,
    ("eager, torch.onnx, opset 23", "encoders"): 10,
    ("eager, TorchScript, opset 17", "encoders"): 8,
    ("optimum-onnx 0.1", "encoders"): 0,
}
"""Attentions that the recipes fused without those passes, by exporter and kind of model."""
Row = list[str]


def row(
    cell: Cell,
    before: Verdict,
    after: Verdict,
    others: tuple[Verdict, Verdict] | None,
    kept: Row | None = None,
) -> Row:
    """The cells of a graph; those of other tools, and times, are kept where not measured."""
    places = sum(cell.subject.expected.get(op, 0) for op in ATTENTIONS)
    if others is not None:
        tools = [f"{o.nodes} ({fused(o)})" for o in others]
    else:
        assert kept is not None
        tools = kept[5:7]
    assert after.error is not None
    small = "< 1e-5" if after.error < 1e-5 else f"{after.error:.0e}"
    found = f"{fused(after)}/{places}"
    nodes = [str(before.nodes), str(after.nodes)]
    time = kept[8] if kept is not None else "-"
    return [cell.subject.name, cell.way, found, *nodes, *tools, small, time]


def times(ratios: Sequence[float | None]) -> str:
    """The cell of the times."""
    return ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)


def fused(verdict: Verdict) -> int:
    """Attentions that became one node."""
    return sum(verdict.fused.get(op, 0) for op in ATTENTIONS)


def kept_rows() -> dict[str, Row]:
    """The rows of the committed table, by the name of their graph."""
    if not TABLE.is_file():
        return {}
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [[p.strip() for p in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    names = {cell.name for cell in CELLS}
    return {name: r for r in rows if (name := ", ".join(r[:2])) in names and len(r) == len(COLUMNS)}


def render(rows: dict[str, Row]) -> str:
    """The whole file, rows in the order of the cells."""
    shown = [rows[cell.name] for cell in CELLS if cell.name in rows]
    whole = table([COLUMNS, ["---"] * len(COLUMNS), *shown])
    return HEAD + "\n" + whole + GROUPS + table(groups(rows))


def groups(rows: dict[str, Row]) -> list[list[str]]:
    """Attentions fused before and now, by exporter and kind of model."""
    lines = [["exporter", "models", "places", "before", "now"], ["---"] * 5]
    for (way, kind), before in BEFORE.items():
        found = [cell for cell in CELLS if cell.way == way and kind_of(cell) == kind]
        ratios = [rows[cell.name][2].split("/") for cell in found if cell.name in rows]
        now, places = (sum(int(ratio[i]) for ratio in ratios) for i in (0, 1))
        lines.append([way, f"{len(ratios)} {kind}", str(places), str(before), str(now)])
    return lines


def kind_of(cell: Cell) -> str:
    """The kind of model; "" for caches of fixed length, which were not tried before."""
    if isinstance(cell.subject, FixedDecoder):
        return ""
    return "decoders" if cell.subject.recipe == "decoder" else "encoders"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
