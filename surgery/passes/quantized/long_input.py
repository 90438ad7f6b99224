"""Two forms of a graph in one: for inputs of many positions, and for those of few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.products import product_of
from surgery.rewrite.builder import initializer, names, prune, unique
from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.matcher import Matcher, Miss
from surgery.rewrite.reach import above, below, makers, owners, users
from surgery.rewrite.scope import around, place
from surgery.rewrite.two_forms import LENGTH, LIMIT, LONG
from surgery.rewrite.weights import RowTensor, source_of


@dataclass(frozen=True)
class Body:
    """What moves into the branches.

    Attributes:
        nodes: in order.
        outputs: what nodes behind them read, and outputs of the graph.
        weights: of which the long branch gets its own.
        counted: an input of the graph whose first axes are batch and sequence.
    """

    nodes: list[ir.Node]
    outputs: list[ir.Value]
    weights: list[ir.Value]
    counted: ir.Value


class LongInput(Pass):
    """A graph gets two branches, so that long inputs can take other kernels than short ones.

    before  body: products of x [batch, sequence, K] with weights, and all that is not behind the
            head ; head(body)
    after   If(sequence >= 16): body, its weights named weight.long ; else: body ; head(If)
    keeps   every output; names of weights in the short branch; both names stand for one weight,
            stored once until a later pass gives one of them another form; which branch runs does
            not depend on the batch
    not     weights that the caller leaves out: they and the products that only they feed, such as
            the head, are shared by both forms
    why     a prompt is bound by arithmetic, one more token by the bytes of the weights: the long
            branch can hold weights in 8 bits for `matmul_int8`, the short one in 4
    """

    name = "long_input"
    needs = ("dims", "fold", "noop")

    def __init__(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        length: int = LENGTH,
        expect: int | None = None,
    ) -> None:
        """Choose the weights.

        Args:
            wanted: whether the long branch gets a weight of its own, by the weight's name.
            length: positions from which an input is long.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.wanted, self.length = wanted, length

    def sites(self, model: ir.Model) -> list[Site]:
        """The first of the products that move, if there is one."""
        products = self.products(model)
        try:
            return [Site(place(products[0]), "MatMul")] if products and self.body(model) else []
        except Miss:
            return []

    def near_misses(self, model: ir.Model) -> list[Miss]:
        """Why the graph cannot have two forms."""
        if self.products(model):
            try:
                self.body(model)
            except Miss as miss:
                return [miss]
        return []

    def products(self, model: ir.Model) -> list[ir.Node]:
        """Products outside of branches with weights that are wanted."""
        found = ((node, product_of(node)) for node in model.graph)
        return [node for node, product in found if product and self.wanted(product.name)]

    def body(self, model: ir.Model) -> Body:
        """What moves.

        Raises:
            Miss: no input tells the number of positions.
        """
        products = self.products(model)
        needed = above(products)
        heads = [node for node in model.graph if product_of(node) and node not in needed]
        owner = owners(model.graph)
        behind = below(heads, owner)
        varying = below([user for v in model.graph.inputs for user in users(v, owner)], owner)
        outputs = [
            value
            for node in model.graph
            if node in varying and node not in behind
            for value in node.outputs
            if value.is_graph_output() or not behind.isdisjoint(users(value, owner))
        ]
        # What never varies and the head reads, such as its transposed weight, stays with it.
        apart = above([made for node in behind for made in makers(node) if made not in varying])
        moved = above([made for value in outputs if (made := value.producer())]) - apart
        nodes = [node for node in model.graph if node in moved]
        weights = [product.weight for node in products if (product := product_of(node))]
        return Body(nodes, outputs, list(dict.fromkeys(weights)), counted(model, products[0]))

    def apply(self, model: ir.Model) -> int:
        """Move the body into one branch, and a copy with weights of its own into the other."""
        if not self.sites(model):
            return 0
        body, taken = self.body(model), names(model)
        choice = self.choice(model, body, taken)
        short = moved_into_graph(model, body, choice, taken)
        long = copied(short, taken)
        read_own_weights(model.graph, long, body.weights)
        for name, graph in (("then_branch", long), ("else_branch", short)):
            choice.attributes[name] = ir.AttrGraph(name, graph)
        model.graph.sort()
        prune(model)
        return 1

    def choice(self, model: ir.Model, body: Body, taken: set[str]) -> ir.Node:
        """An `If` on the number of positions, without branches yet, in front of what moves."""
        limit = ir.tensor(np.array([self.length], np.int64))
        known = initializer(model.graph, unique(LIMIT, taken), limit)
        positions = ir.node("Shape", [body.counted], {"start": 1, "end": 2})
        long = ir.node("GreaterOrEqual", [positions.outputs[0], known])
        choice = ir.node("If", [long.outputs[0]], num_outputs=len(body.outputs))
        for node, dtype in ((positions, ir.DataType.INT64), (long, ir.DataType.BOOL)):
            value = node.outputs[0]
            value.type, value.shape = ir.TensorType(dtype), ir.Shape((1,))
            value.name = unique(f"{self.name}/{node.op_type}_out", taken)
        for node in (positions, long, choice):
            node.name = unique(f"{self.name}/{node.op_type}", taken)
            node.metadata_props.update(around(body.nodes, node.op_type))
            node.metadata_props["surgery.pass"] = self.name
        model.graph.insert_before(body.nodes[0], [positions, long, choice])
        return choice


def counted(model: ir.Model, product: ir.Node) -> ir.Value:
    """An input of the graph `[batch, sequence, ...]` of the rows that a product has.

    Raises:
        Miss: there is none.
    """
    m, x = Matcher(product), product.inputs[0]
    assert x is not None
    m.rank(x, 3)
    assert x.shape is not None
    rows = list(x.shape)[:2]
    alike = [v for v in model.graph.inputs if v.shape is not None and list(v.shape)[:2] == rows]
    found = [list(v.shape or ()) for v in model.graph.inputs]
    m.check(bool(alike), f"an input of the graph whose first axes are {rows}", found)
    return alike[0]


def moved_into_graph(model: ir.Model, body: Body, choice: ir.Node, taken: set[str]) -> ir.Graph:
    """A graph of what moves; what reads it from outside, reads the `If` instead."""
    moved, owner = set(body.nodes), owners(model.graph)
    for value, out in zip(body.outputs, choice.outputs, strict=True):
        out.name, value.name = value.name, unique(f"{value.name}.short", taken)
        out.shape = value.shape
        if isinstance(value.type, ir.TensorType):
            out.type = ir.TensorType(value.type.dtype)
        for user, place_ in list(value.uses()):
            if owner.get(user, user) not in moved:
                user.replace_input_with(place_, out)
        for i, known in enumerate(model.graph.outputs):
            if known is value:
                model.graph.outputs[i] = out
    model.graph.remove(body.nodes)
    return ir.Graph([], body.outputs, nodes=body.nodes, name=unique("short_input", taken))


def copied(graph: ir.Graph, taken: set[str]) -> ir.Graph:
    """A copy of a branch: types and names of its own, what it reads from outside shared."""
    copy = graph.clone(allow_outer_scope_values=True)
    copy.name = unique("long_input", taken)
    for node in copy.all_nodes():
        node.name = unique(f"{node.name}.long", taken)
        node.metadata_props["surgery.pass"] = LongInput.name
        for value in node.outputs:
            if value.name:
                value.name = unique(f"{value.name.removesuffix('.short')}.long", taken)
            if isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(value.type.dtype)
    return copy


def read_own_weights(graph: ir.Graph, branch: ir.Graph, weights: Sequence[ir.Value]) -> None:
    """Let a branch read other initializers, which come from the same stored weights."""
    for weight in weights:
        source, name = source_of(weight), f"{weight.name}{LONG}"
        assert source is not None
        own = initializer(graph, name, RowTensor(source, name=name))
        for user, place_ in list(weight.uses()):
            if user.graph is branch:
                user.replace_input_with(place_, own)
