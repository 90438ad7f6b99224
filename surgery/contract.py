"""What a pass is: how it matches, what it promises, how it fails.

A pass finds its sites without touching the graph, then rewrites them one by one. It counts them
exactly, checks that none is left, and changes nothing when run again. A place that matched some
way in and then failed is a near-miss: `explain` shows the first condition that failed.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import onnx_ir as ir

from surgery.errors import UserError
from surgery.scope import place, scope

T = TypeVar("T")

FIELDS = ("before", "after", "keeps", "not", "why")
"""What the docstring of a pass states, each on a line of its own after a one-line summary."""

LARGEST_CONSTANT = 1 << 16
"""Elements up to which a constant is read for matching; weights are never read."""


class PassError(UserError):
    """A pass could not do what it promised. The message names the pass and the module."""


class PostconditionError(PassError):
    """Sites are left after the pass."""


class ExpectationError(PassError):
    """A recipe expected another number of sites."""


class Miss(Exception):
    """A place that is no site: the first condition that failed, and what was found instead."""

    def __init__(self, node: ir.Node, condition: str, found: object, depth: int) -> None:
        super().__init__(f"{place(node)}: needs {condition}; found {found}")
        self.node, self.condition, self.found, self.depth = node, condition, found, depth


@dataclass(frozen=True)
class Site:
    """One place where a pass acts."""

    where: str
    """Module path or value name."""
    what: str
    """What stands there, in a few words."""


class Matcher:
    """Conditions of one match attempt, counted, so that a failure tells how far it came."""

    def __init__(self, anchor: ir.Node) -> None:
        self.anchor = anchor
        self.depth = 0

    def check(self, holds: bool, condition: str, found: object) -> None:
        """Go on if a condition holds, else raise `Miss`."""
        if not holds:
            raise Miss(self.anchor, condition, found, self.depth)
        self.depth += 1

    def producer(self, value: ir.Value | None, *ops: str) -> ir.Node:
        """The node that computes `value`, of one of the op types `ops`."""
        node = value.producer() if value is not None else None
        name = value.name if value is not None else "an absent input"
        found = node.op_type if node is not None else "no node: a graph input or constant"
        self.check(
            node is not None and node.op_type in ops, f"{name} from {' or '.join(ops)}", found
        )
        assert node is not None
        return node

    def operands(self, node: ir.Node, op: str) -> tuple[ir.Node, ir.Value]:
        """The inputs of a commutative node: the one computed by `op`, and the other."""
        a, b = node.inputs[:2]
        assert a is not None and b is not None
        for one, other in ((a, b), (b, a)):
            made = one.producer()
            if made is not None and made.op_type == op:
                self.depth += 1
                return made, other
        kinds = [v.producer().op_type if v.producer() else "constant" for v in (a, b)]  # type: ignore[union-attr]
        raise Miss(self.anchor, f"an operand of {node.op_type} from {op}", kinds, self.depth)

    def constant(self, value: ir.Value | None, what: str = "a constant") -> np.ndarray:
        """The numbers of a small constant."""
        tensor = constant(value)
        found = "no input" if value is None else f"{value.name}, computed or too large"
        self.check(tensor is not None, what, found)
        assert tensor is not None
        return tensor

    def user(self, value: ir.Value, op: str) -> ir.Node:
        """The only node that reads `value`, of op type `op`."""
        users = value.consumers()
        found = ", ".join(node.op_type for node in users) or "a graph output"
        fits = len(users) == 1 and users[0].op_type == op and not value.is_graph_output()
        self.check(fits, f"{value.name} read by one {op} alone", found)
        return users[0]

    def rank(self, value: ir.Value, *ranks: int) -> None:
        """The rank of `value` is known and one of `ranks`."""
        found = "unknown" if value.shape is None else len(value.shape)
        self.check(found in ranks, f"{value.name} of rank {' or '.join(map(str, ranks))}", found)


class Pass(ir.passes.InPlacePass, abc.ABC):
    """A graph transformation with a name, sites, a count and a post-condition."""

    name: ClassVar[str]
    """The word on the command line; the module of the pass has the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @abc.abstractmethod
    def sites(self, model: ir.Model) -> list[Site]:
        """Where the pass would act. Reads, never writes."""

    @abc.abstractmethod
    def apply(self, model: ir.Model) -> int:
        """Act on every site; returns how many there were."""

    def near_misses(self, model: ir.Model) -> list[Miss]:
        """Places that matched some way in, farthest first."""
        return []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply, then check that no site is left."""
        self.count = self.apply(model)
        left = self.sites(model)
        if left:
            raise PostconditionError(
                f"{self.name}: {len(left)} sites left after the pass, the first at "
                f"{left[0].where} ({left[0].what})."
            )
        return ir.passes.PassResult(model, modified=self.count > 0)

    @classmethod
    def describe(cls) -> dict[str, str]:
        """The docstring as fields: "summary", then `FIELDS`."""
        return fields(cls)


class NodePass(Pass, Generic[T]):
    """A pass whose sites each start from one node, the anchor."""

    anchors: ClassVar[tuple[str, ...]]
    """Op types that a match starts from."""

    @abc.abstractmethod
    def match(self, node: ir.Node, m: Matcher) -> T:
        """What a rewrite needs to know of the site at `node`, or `Miss`."""

    @abc.abstractmethod
    def rewrite(self, node: ir.Node, found: T, add: Builder) -> None:
        """Rewrite the site at `node`."""

    def scan(self, model: ir.Model) -> Iterator[tuple[ir.Node, T | Miss]]:
        """Every anchor with its match or its miss, in graph order."""
        for graph in model.graphs():
            for node in graph:
                if node.op_type in self.anchors:
                    try:
                        yield node, self.match(node, Matcher(node))
                    except Miss as miss:
                        yield node, miss

    def sites(self, model: ir.Model) -> list[Site]:
        """Anchors that match."""
        return [
            Site(place(node), node.op_type)
            for node, found in self.scan(model)
            if not isinstance(found, Miss)
        ]

    def near_misses(self, model: ir.Model) -> list[Miss]:
        """Anchors that matched at least one condition, farthest first."""
        misses = [f for _, f in self.scan(model) if isinstance(f, Miss) and f.depth > 0]
        return sorted(misses, key=lambda miss: -miss.depth)

    def apply(self, model: ir.Model) -> int:
        """Rewrite site after site, each matched anew: one rewrite may rename another's inputs."""
        nodes = [node for node, found in self.scan(model) if not isinstance(found, Miss)]
        taken = names(model)
        for node in nodes:
            try:
                found = self.match(node, Matcher(node))
            except Miss as miss:
                raise PassError(f"{self.name}: one site undid another: {miss}.") from miss
            self.rewrite(node, found, Builder(self.name, node, taken))
        if nodes:
            prune(model)
        return len(nodes)


class Builder:
    """Makes the nodes of a rewrite: placed before the anchor, in its module, uniquely named."""

    def __init__(self, maker: str, anchor: ir.Node, taken: set[str]) -> None:
        assert anchor.graph is not None
        assert isinstance(anchor.graph, ir.Graph)
        self.graph = anchor.graph
        self.maker, self.anchor, self.taken = maker, anchor, taken
        self.before = anchor
        """New nodes go before this one; a rewrite that starts earlier moves it."""

    def __call__(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType | None = None,
        shape: Sequence[Any] | ir.Shape | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Insert a node and return its first output.

        Args:
            op: op type.
            inputs: values; None for an optional one left out.
            attributes: Python values.
            domain: op domain, "" for ONNX's own.
            outputs: number of outputs.
            dtype: of the first output.
            shape: of the first output.
            like: a value whose dtype and shape the first output has.
        """
        node = self.node(op, inputs, attributes, domain=domain, outputs=outputs)
        first = node.outputs[0]
        if like is not None:
            dtype, shape = dtype or like.dtype, shape if shape is not None else like.shape
        if dtype is not None:
            first.type = ir.TensorType(dtype)
        if shape is not None:
            first.shape = ir.Shape(shape)
        return first

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """Insert a node and return it."""
        module = scope(self.anchor)
        name = self.unique(f"{module}/{op}" if module else f"{self.maker}/{op}")
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        node.metadata_props.update(self.anchor.metadata_props)
        node.metadata_props["surgery.pass"] = self.maker
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        for i, value in enumerate(node.outputs):
            value.name = self.unique(f"{name}_{i}" if i else f"{name}_out")
        self.graph.insert_before(self.before, node)
        return node

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initializer, shared by name: asking again for the same one returns it."""
        known = self.graph.initializers.get(name)
        if known is not None and isinstance(known.const_value, ir.Tensor):
            same = known.const_value.numpy()
            if same.dtype == array.dtype and np.array_equal(same, array):
                return known
        name = self.unique(name)
        return initializer(self.graph, name, ir.tensor(array, name=name))

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        candidate, n = name, 1
        while candidate in self.taken:
            n += 1
            candidate = f"{name}.{n}"
        self.taken.add(candidate)
        return candidate


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer of `graph`."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant value: an initializer or the output of `Constant`."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return None  # a weight
    if tensor.size > LARGEST_CONSTANT:
        return None
    return np.asarray(tensor.numpy())


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer of the graph."""
    return value is not None and value.is_initializer()


def names(model: ir.Model) -> set[str]:
    """Every node and value name in a model."""
    found: set[str] = set()
    for graph in model.graphs():
        found.update(v.name or "" for v in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            found.add(node.name or "")
            found.update(v.name or "" for v in node.outputs)
    return found


def prune(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; a graph output keeps its name."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.replaced"
        new.name = name
        new.shape, new.type = new.shape or old.shape, new.type or old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def fields(cls: type) -> dict[str, str]:
    """Parse a pass's docstring: the summary line, then a field a line, indented lines go on."""
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
