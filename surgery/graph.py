"""Any ONNX graph: load it, run passes, look at it as text or drawing, compare, save."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery.base import manifest
from surgery.base.errors import UserError
from surgery.base.staging import check_free, staged
from surgery.engine.facts import Facts
from surgery.engine.loading import load_any
from surgery.engine.options import Options
from surgery.jobs.apply import LIBRARIES
from surgery.package.external_data import files_read, write_graphs
from surgery.rewrite import view
from surgery.rewrite.contract import Pass, PreconditionError
from surgery.rewrite.copies import copied
from surgery.rewrite.matcher import Miss
from surgery.rewrite.scope import scope
from surgery.show.region import LARGEST, draw


@dataclass(frozen=True)
class Outcome:
    """What a pass did to a graph.

    Attributes:
        name: name of the pass.
        sites: number of places where it acted.
        before: nodes before it, constants not counted.
        after: nodes after it.
        misses: places that nearly match, nearest first, as the graph stands after the pass.
    """

    name: str
    sites: int
    before: int
    after: int
    misses: tuple[Miss, ...]

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}: {self.sites} sites, {self.before} -> {self.after} nodes"


class Graph:
    """A graph; passes give new ones and leave it as it is.

    Args:
        model: the graph.
        names: numbers of values, shared by graphs that come from each other.
        outcomes: of the passes that it went through.
    """

    def __init__(
        self,
        model: ir.Model,
        names: view.Names | None = None,
        outcomes: tuple[Outcome, ...] = (),
    ) -> None:
        self.model = model
        self.names = names or view.Names()
        self.outcomes = outcomes
        view.text(model, self.names)  # numbers are given in the order of the first graph

    def run(self, *passes: Pass) -> Graph:
        """This graph after some passes; `outcomes` of the result has an entry for each.

        Raises:
            PreconditionError: a pass needs another one to run before it.
            ExpectationError: a pass found another number of sites than its `expect`.
            PassError: a pass could not do what it promised.
        """
        model = copied(self.model)
        outcomes = list(self.outcomes)
        for work in passes:
            ran = {outcome.name for outcome in outcomes}
            lacking = [name for name in work.needs if name not in ran]
            if lacking:
                raise PreconditionError(
                    f"{work.name}: needs {', '.join(lacking)} to run before it. "
                    f"Run surgery.passes.TIDY first."
                )
            before = view.size(model)
            work(model)
            misses = tuple(work.near_misses(model))
            outcomes.append(Outcome(work.name, work.count, before, view.size(model), misses))
        return Graph(model, self.names, tuple(outcomes))

    def save(self, folder: str | Path, name: str = "", force: bool = False) -> Path:
        """Write the graph, its weights in a data file beside it.

        The folder appears whole or not at all, and weights are streamed: memory holds a few
        blocks of rows, whatever their size.

        Args:
            folder: directory to write.
            name: file name of the graph; that of the graph itself by default.
            force: replace an earlier output.

        Returns:
            The ONNX file.

        Raises:
            OutputError: the folder is not empty, holds weights of this graph, or cannot be
                written.
            UserError: the name is no file name.
        """
        folder = Path(folder)
        name = name or f"{self.model.graph.name or 'model'}.onnx"
        if Path(name).name != name:
            raise UserError(f"{name}: must be a file name, without folders.")
        inputs = files_read(self.model)
        check_free(folder, force, inputs)
        ran = [{"pass": outcome.name, "sites": outcome.sites} for outcome in self.outcomes]
        about = {
            "kind": "graphs",
            "versions": manifest.versions(LIBRARIES),
            "options": {},
            "graphs": {name: ran},
        }
        with staged(folder, force, about, inputs) as stage:
            write_graphs({name: copied(self.model)}, stage)
        return folder / name

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


def load(path: str | Path) -> Graph:
    """A graph that anybody exported, of a raw export, of a dump or of a package.

    Every weight is known, inline, external or huge, and stays where it is. The opset is brought
    to 23 where that is possible, and unknown shapes are inferred.

    Args:
        path: an ONNX file; its external data lies in its folder, or for a raw export where its
            manifest.json says.

    Raises:
        PackageError: no such file, or no ONNX graph in it.
    """
    path = Path(path)
    manifest = path.parent / "manifest.json"
    exported = manifest.is_file() and path.name in ("vision.onnx", "embedding.onnx", "decoder.onnx")
    model = load_any(path, Facts.load(path.parent, Options()).weights if exported else None)
    model.graph.name = path.stem
    return Graph(model)


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
