"""Graphs in a notebook: load, run passes, look at a part as text or as a drawing, compare."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.engine import runner
from surgery.rewrite import view
from surgery.rewrite.contract import Pass
from surgery.rewrite.copies import copied
from surgery.rewrite.scope import scope
from surgery.show.region import LARGEST, draw


class Graph:
    """A graph to look at; passes give new ones and leave it as it is.

    Args:
        model: the graph.
        names: numbers of values, shared by graphs that come from each other.
    """

    def __init__(self, model: ir.Model, names: view.Names | None = None) -> None:
        self.model = model
        self.names = names or view.Names()
        view.text(model, self.names)  # numbers are given in the order of the first graph

    def run(self, *passes: Pass) -> Graph:
        """This graph after some passes."""
        model = copied(self.model)
        for work in passes:
            work(model)
        return Graph(model, self.names)

    def text(self, module: str = "") -> str:
        """Canonical text, of one module if named."""
        whole = view.text(self.model, self.names, types=True)
        if not module:
            return whole
        lines, inside = [], False
        for line in whole.splitlines():
            if line.startswith("# "):
                inside = within(line[2:], module)
            if inside:
                lines.append(line)
        return "\n".join(lines) + "\n"

    def region(self, module: str) -> Region:
        """The nodes of a module and of those inside it.

        Raises:
            UserError: no node lies in a module of that name.
        """
        nodes = [node for node in self.model.graph if within(scope(node), module)]
        if not nodes:
            raise UserError(f"{module}: no node comes from a module of that name.")
        return Region(self, module, nodes)

    def diff(self, other: Graph) -> Diff:
        """How another graph differs from this one."""
        old = view.text(self.model, self.names, types=True)
        new = view.text(other.model, self.names, types=True)
        return Diff(view.diff(old, new))

    def __str__(self) -> str:
        """The text."""
        return self.text()

    def _repr_html_(self) -> str:
        rows = view.histogram(self.model).most_common()
        cells = "".join(f"<tr><td>{op}</td><td>{count}</td></tr>" for op, count in rows)
        return f"<b>{view.size(self.model)} nodes</b><table>{cells}</table>"


class Region:
    """Some nodes of a graph; a notebook shows the drawing, `print` the text."""

    def __init__(self, graph: Graph, module: str, nodes: list[ir.Node]) -> None:
        self.graph, self.module, self.nodes = graph, module, nodes

    def __str__(self) -> str:
        """The module's part of the text."""
        return self.graph.text(self.module)

    def _repr_svg_(self) -> str:
        shown = [node for node in self.nodes if node.op_type != "Constant"][:LARGEST]
        return standalone(draw(shown, title=self.module))


class Diff(str):
    """A unified diff; a notebook colours it."""

    def _repr_html_(self) -> str:
        from html import escape

        colors = {"-": "#fdeceb", "+": "#e6f6ee"}
        lines = (
            f'<span style="display:block;background:{colors.get(line[:1], "none")};'
            f'color:#1b2230">{escape(line)}</span>'
            for line in self.splitlines()
        )
        return f'<pre style="line-height:1.4;background:#fafbfc">{"".join(lines)}</pre>'


def load(path: str | Path, weights: str | Path | None = None) -> Graph:
    """A graph of a raw export, of a dump or of a package; its weights stay where they are.

    Args:
        path: an ONNX file, or the directory of a raw export with a graph's name below it.
        weights: folder of its external data; its own by default.

    Raises:
        PackageError: no such file, or no ONNX graph in it.
    """
    return Graph(runner.load(Path(path), Path(weights) if weights is not None else None))


def within(path: str, module: str) -> bool:
    """Whether a module path is, or lies in, a module given from any of its names on."""
    return f".{module}." in f".{path}."


def standalone(svg: str) -> str:
    """A drawing that brings its colours along."""
    return svg.replace(">", f"><style>{STYLE}</style>", 1)


def rules(pairs: Iterable[tuple[str, str]]) -> str:
    """CSS of a drawing."""
    return "".join(f".graph {selector}{{{body}}}" for selector, body in pairs)


STYLE = rules(
    (
        ("path", "fill:none;stroke:#98a2b3;stroke-width:1.2"),
        ("rect", "fill:#fff;stroke:#c9ced8;stroke-width:1.2"),
        ("text", "fill:#1b2230;font:600 12.5px sans-serif;text-anchor:middle"),
        ("text.sub", "fill:#667085;font:10.5px monospace"),
        (".value rect", "fill:#eaf0ff;stroke:#3563e9"),
        (".far", "opacity:.55"),
    )
)
