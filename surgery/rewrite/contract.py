"""What a pass is: how it matches, what it promises, how it fails.

A pass finds its sites without touching the graph, then rewrites them one by one. It counts them
exactly, checks that none is left, and changes nothing when run again. A near-miss is a place that
meets the first conditions of a match and fails a later one; `explain` shows the one that failed.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.rewrite.builder import Builder, names, prune
from surgery.rewrite.matcher import Matcher, Miss
from surgery.rewrite.scope import place

T = TypeVar("T")

FIELDS = ("before", "after", "keeps", "not", "why")
"""Fields of a pass's docstring, each starting a line, after a summary of one line."""


class PassError(UserError):
    """A pass could not do what it promised. The message names the pass and the module."""


class PostconditionError(PassError):
    """Sites are left after the pass."""


class ExpectationError(PassError):
    """A pass found another number of sites than it was told to expect."""


class PreconditionError(PassError):
    """A pass runs on a graph that an earlier pass has not prepared."""


class GraphError(UserError):
    """A node cannot run on the inputs that it has. The message names it."""


@dataclass(frozen=True)
class Site:
    """One place where a pass acts."""

    where: str
    """Module path or value name."""
    what: str
    """The op type or another short description."""


class Pass(ir.passes.InPlacePass, abc.ABC):
    """A graph transformation with a name, sites, a count and a post-condition.

    Instances are not thread-safe: a call stores its count and what it has read of the graph. One
    instance may work on many graphs in turn; several threads need an instance each.
    """

    name: ClassVar[str]
    """The word on the command line; the module of the pass has the same name."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of passes that have to run before this one on a graph that an exporter wrote."""

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected.

        Args:
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__()
        self.expect = expect
        self.count = 0
        """Sites of the last call."""

    @abc.abstractmethod
    def sites(self, model: ir.Model) -> list[Site]:
        """Places where the pass would act. It reads the graph and does not change it."""

    @abc.abstractmethod
    def apply(self, model: ir.Model) -> int:
        """Rewrite every site; returns how many there were."""

    def near_misses(self, model: ir.Model) -> list[Miss]:
        """Places that met some conditions of a match, those that met most first."""
        return []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply, then check the number of sites and that none is left.

        Raises:
            ExpectationError: another number of sites than expected.
            PostconditionError: sites are left.
        """
        self.count = self.apply(model)
        if self.expect is not None and self.count != self.expect:
            misses = self.near_misses(model)
            nearest = f" Nearest miss: {misses[0]}." if misses else ""
            raise ExpectationError(
                f"{self.name}: {self.count} sites, expected {self.expect}.{nearest}"
            )
        left = self.left(model)
        if left:
            raise PostconditionError(
                f"{self.name}: {len(left)} sites left after the pass, the first at "
                f"{left[0].where} ({left[0].what})."
            )
        return ir.passes.PassResult(model, modified=self.count > 0)

    def left(self, model: ir.Model) -> list[Site]:
        """Sites that `apply`, which just ran, has left; none if it found none to rewrite.

        Then the graph is as it was when `apply` looked, and to look again would find the same.
        """
        return self.sites(model) if self.count else []

    def details(self) -> dict[str, Any]:
        """What the last call decided beside the graph, as plain data for dumps and reports."""
        return {}

    @classmethod
    def describe(cls) -> dict[str, str]:
        """The docstring as fields: "summary", then `FIELDS`."""
        return fields(cls)


class NodePass(Pass, Generic[T]):
    """A pass whose sites each start from one node, the anchor."""

    anchors: ClassVar[tuple[str, ...]]
    """Op types that a match starts from."""

    def forget(self) -> None:
        """Clear what the pass has cached about a graph; passes with a cache override it.

        `sites`, `near_misses` and `apply` call it first, so that nothing cached survives an edit
        of the graph between two calls.
        """

    @abc.abstractmethod
    def match(self, node: ir.Node, m: Matcher) -> T:
        """Return what `rewrite` needs to know about the site at `node`.

        Raises:
            Miss: a condition failed; the node is no site.
        """

    @abc.abstractmethod
    def rewrite(self, node: ir.Node, found: T, add: Builder) -> None:
        """Rewrite the site at `node`."""

    def scan(self, model: ir.Model) -> Iterator[tuple[ir.Node, T | Miss]]:
        """Every anchor with its match or its `Miss`, in graph order."""
        for graph in model.graphs():
            for node in graph:
                if node.op_type in self.anchors:
                    try:
                        yield node, self.match(node, Matcher(node))
                    except Miss as miss:
                        yield node, miss

    def sites(self, model: ir.Model) -> list[Site]:
        """Anchors that match."""
        self.forget()
        return [
            Site(place(node), node.op_type)
            for node, found in self.scan(model)
            if not isinstance(found, Miss)
        ]

    def near_misses(self, model: ir.Model) -> list[Miss]:
        """Anchors that met at least one condition, those that met most first."""
        self.forget()
        misses = [f for _, f in self.scan(model) if isinstance(f, Miss) and f.depth > 0]
        return sorted(misses, key=lambda miss: -miss.depth)

    def apply(self, model: ir.Model) -> int:
        """Rewrite each site after matching it again: one rewrite may change another's inputs."""
        self.forget()
        nodes = [node for node, found in self.scan(model) if not isinstance(found, Miss)]
        taken = names(model) if nodes else set()
        for node in nodes:
            try:
                found = self.match(node, Matcher(node))
            except Miss as miss:
                raise PassError(f"{self.name}: rewriting one site broke another: {miss}.") from miss
            self.rewrite(node, found, Builder(self.name, node, taken, model.graph))
        if nodes:
            prune(model)
            import_domains(model)
        self.forget()
        return len(nodes)


def import_domains(model: ir.Model) -> None:
    """Let the model import what its branches use: the checker reads the imports of the model."""
    for graph in model.graphs():
        for domain, version in graph.opset_imports.items():
            model.opset_imports.setdefault(domain, version)


def fields(cls: type) -> dict[str, str]:
    """Parse a pass's docstring: a summary line, then fields; indented lines continue a field."""
    summary, *lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    found, current = {"summary": summary}, ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word in (*FIELDS, "upstream"):
            current = word
            found[current] = rest.strip()
        elif current and line.startswith(" "):
            found[current] += " " + line.strip()
    missing = [field for field in FIELDS if field not in found]
    if missing:
        raise TypeError(f"{cls.__name__}: docstring lacks {', '.join(missing)}")
    return found
