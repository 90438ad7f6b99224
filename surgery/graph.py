"""The public class `Graph`: load any ONNX graph, run passes on it, display, compare and save it."""

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
        sites: number of places that it changed.
        before: number of nodes before the pass, without constants.
        after: number of nodes after the pass, without constants.
        misses: places in the resulting graph that nearly match the pass, nearest first.
    """

    name: str
    sites: int
    before: int
    after: int
    misses: tuple[Miss, ...]

    def __str__(self) -> str:
        """Return the figures as one line."""
        return f"{self.name}: {self.sites} sites, {self.before} -> {self.after} nodes"


class Graph:
    """An ONNX graph that no method changes: running passes returns a new graph.

    Args:
        model: the graph.
        names: the numbers that stand for values in the text. A graph shares them with the graphs
            made from it, so that their texts can be compared.
        outcomes: results of the passes that made this graph, in order.
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
        view.text(model, self.names)  # numbers the values in the order of the first graph

    def run(self, *passes: Pass) -> Graph:
        """Return this graph after some passes. `outcomes` of the result has an entry for each pass.

        Raises:
            PreconditionError: a pass needs another pass to run before it.
            ExpectationError: a pass found a number of sites other than its `expect`.
            PassError: the result of a pass does not satisfy what the pass guarantees.
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
        """Write the graph and, beside it, a data file with its weights.

        The folder appears only when it is complete. Weights are streamed: memory holds a few
        blocks of rows at a time, however large the weights are.

        Args:
            folder: directory to write.
            name: file name of the graph. By default, the name of the graph with ".onnx".
            force: replace an earlier output.

        Returns:
            The path of the ONNX file.

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
        """Return the graph, or one module of it, as canonical text.

        Args:
            module: path of a torch module, or the end of one. By default, the whole graph.
        """
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
        """Return the nodes of a torch module and of the modules inside it.

        Raises:
            UserError: no node comes from a module of that name.
        """
        nodes = [node for node in self.model.graph if within(scope(node), module)]
        if not nodes:
            raise UserError(f"{module}: no node comes from a module of that name.")
        return Region(self, module, nodes)

    def diff(self, other: Graph) -> Diff:
        """Return how the text of another graph differs from that of this one."""
        old = view.text(self.model, self.names, types=True)
        new = view.text(other.model, self.names, types=True)
        return Diff(view.diff(old, new))

    def __str__(self) -> str:
        """Return the canonical text of the whole graph."""
        return self.text()

    def _repr_html_(self) -> str:
        rows = view.histogram(self.model).most_common()
        cells = "".join(f"<tr><td>{op}</td><td>{count}</td></tr>" for op, count in rows)
        return f"<b>{view.size(self.model)} nodes</b><table>{cells}</table>"


class Region:
    """The nodes of a module. A notebook shows them as a drawing, `print` as text."""

    def __init__(self, graph: Graph, module: str, nodes: list[ir.Node]) -> None:
        self.graph, self.module, self.nodes = graph, module, nodes

    def __str__(self) -> str:
        """Return the part of the graph's text that belongs to the module."""
        return self.graph.text(self.module)

    def _repr_svg_(self) -> str:
        shown = [node for node in self.nodes if node.op_type != "Constant"][:LARGEST]
        return standalone(draw(shown, title=self.module))


class Diff(str):
    """A unified diff, which a notebook shows in colour."""

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
    """Load a graph from any exporter, or from a raw export, a dump or a package.

    Passes see every weight, inline or external, whatever its size. External weights stay on disk.
    The opset is converted to 23 if possible, and unknown shapes are inferred.

    Args:
        path: an ONNX file. Its external data is in its folder or, for a raw export, where
            manifest.json says.

    Raises:
        PackageError: the file does not exist or holds no ONNX graph; or the checkpoint of a raw
            export is gone or has changed.
    """
    path = Path(path)
    manifest = path.parent / "manifest.json"
    exported = manifest.is_file() and path.name in ("vision.onnx", "embedding.onnx", "decoder.onnx")
    weights = None
    if exported:
        facts = Facts.load(path.parent, Options())
        facts.check_unchanged()
        weights = facts.weights
    model = load_any(path, weights)
    model.graph.name = path.stem
    return Graph(model)


def within(path: str, module: str) -> bool:
    """Return whether `path` lies in `module`, which may lack the first names of its own path."""
    return f".{module}." in f".{path}."


def standalone(svg: str) -> str:
    """Return a drawing that contains its style sheet."""
    return svg.replace(">", f"><style>{STYLE}</style>", 1)


def rules(pairs: Iterable[tuple[str, str]]) -> str:
    """Return CSS rules for a drawing, from pairs of selector and declarations."""
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
