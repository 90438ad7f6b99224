"""Matrix products and attention in float16, norms and rotary in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import initializer, names
from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.scope import place
from surgery.rewrite.weights import Cast, RowTensor, narrow, set_source, source_of

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

COMPUTE = frozenset(
    {
        *("MatMul", "Gemm", "MatMulNBits", "GroupQueryAttention", "MultiHeadAttention"),
        *("Gelu", "QuickGelu", "MoE", "QMoE", "If"),
    }
)
"""Ops that compute in float16: products, attention (in the branches of `If` too), activations."""

FOLLOW = frozenset({"Mul", "Reshape", "Split", "Slice", "Transpose"})
"""Ops that take the dtype of what they read, where all of it is float16."""


class Half(Pass):
    """Products in float16 on a residual stream in float32.

    before  every activation float32
    after   products, attention and activations float16 ; norms, rotary and residual float32
    keeps   dtypes of graph inputs and outputs, but for the cache, which becomes float16
    not     ops for which the provider has no float16 kernel; the product that chooses experts
    why     half the weights and twice the products; sums of squares and angles need float32
    upstream huggingface/transformers#33294
    """

    name = "half"

    def __init__(
        self, runs: Callable[[str], bool] = lambda op: True, *, expect: int | None = None
    ) -> None:
        """Tell what the provider has.

        Args:
            runs: whether it has a float16 kernel for one of `COMPUTE`.
        """
        super().__init__(expect=expect)
        self.runs = runs

    def pending(self, model: ir.Model) -> Iterator[ir.Node]:
        """Nodes that compute in float32 and should not."""
        for node in model.graph:
            wanted = node.op_type in COMPUTE and self.supported(node) and not chooses(node)
            if wanted and touches(node, F32):
                yield node

    def supported(self, node: ir.Node) -> bool:
        """Whether the provider computes a node in float16, its branches included."""
        inner = [n.op_type for graph in branches(node) for n in graph if n.op_type in COMPUTE]
        return all(self.runs(op) for op in inner or [node.op_type])

    def sites(self, model: ir.Model) -> list[Site]:
        """Nodes to convert."""
        return [Site(place(node), node.op_type) for node in self.pending(model)]

    def apply(self, model: ir.Model) -> int:
        """Convert nodes in order, casting what they read and restoring what others read."""
        found = list(self.pending(model))
        convert = Converter(model)
        chosen = set(found)
        for node in list(model.graph):
            follows = node.op_type in FOLLOW and convert.all_half(node)
            if node in chosen or follows:
                convert.node(node)
        convert.finish()
        return len(found)


def branches(node: ir.Node) -> list[ir.Graph]:
    """Subgraphs of a node, nested ones included."""
    direct = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return direct + [deep for graph in direct for inner in graph for deep in branches(inner)]


def touches(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether a node makes or reads activations of a dtype."""
    values = [*node.outputs, *(v for graph in branches(node) for v in captured(graph))]
    return any(v.dtype == dtype for v in values) and bool(node.outputs)


def chooses(node: ir.Node) -> bool:
    """Whether a product chooses experts: rounded to float16, near ties would choose others."""
    uses = [use for value in node.outputs for use in value.uses()]
    for use in uses:
        reader, following = use.node, use.node.successors()
        if reader.op_type == "Softmax" and any(n.op_type == "TopK" for n in following):
            return True
        if reader.op_type == "Cast":
            uses.extend(use for value in reader.outputs for use in value.uses())
        if reader.op_type in ("MoE", "QMoE") and use.idx == 1:
            return True
    return False


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values from outside that a subgraph reads, each once."""
    own = {v for node in graph for v in node.outputs} | set(graph.inputs)
    own |= {v for node in graph for inner in branches(node) for v in inner.inputs}
    own |= {v for node in graph for g in branches(node) for n in g for v in n.outputs}
    read = [v for node in graph for v in node.inputs if v is not None]
    read += [v for node in graph for g in branches(node) for n in g for v in n.inputs if v]
    return [v for v in dict.fromkeys(read) if v not in own]


class Converter:
    """Turns nodes to float16 and keeps everything else as it was."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.taken = model.graph, names(model)
        self.halves: dict[ir.Value, ir.Value] = {}
        """float16 copies of float32 values."""
        self.changed: list[ir.Value] = []
        """Values that are float16 now."""
        self.inner: set[ir.Graph] = set()
        """Branches that compute in float16 now."""

    def all_half(self, node: ir.Node) -> bool:
        """Whether a node reads float16 activations and no float32 ones."""
        floats = [v for v in node.inputs if v is not None and v.dtype in (F32, F16)]
        return bool(floats) and all(v.dtype == F16 for v in floats)

    def node(self, node: ir.Node) -> None:
        """Let a node read and make float16."""
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == F32:
                node.replace_input_with(i, self.half(value, node))
        for graph in branches(node):
            self.subgraph(graph, node)
            self.inner.add(graph)
        for value in node.outputs:
            if value.dtype == F32:
                value.dtype = F16
                self.changed.append(value)

    def subgraph(self, graph: ir.Graph, node: ir.Node) -> None:
        """Let a branch compute in float16 throughout."""
        for value in captured(graph):
            if value.dtype == F32:
                half = self.half(value, node)
                for use in list(value.uses()):
                    if use.node.graph is graph:
                        use.node.replace_input_with(use.idx, half)
        inner = [v for n in graph for v in n.outputs]
        for value in (*graph.inputs, *inner):
            if value.dtype == F32:
                value.dtype = F16

    def half(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """A float16 form of a float32 value: a weight stored so, or a cast."""
        if value in self.halves:
            return self.halves[value]
        if is_cache(value):
            value.dtype = F16
            return value
        if value.is_initializer():
            self.halves[value] = self.weight(value)
            return self.halves[value]
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            source = producer.inputs[0]
            if source.dtype == F16:
                return source
        self.halves[value] = self.cast(value, F16, before)
        return self.halves[value]

    def weight(self, value: ir.Value) -> ir.Value:
        """A weight in float16: the same initializer where nothing else reads it."""
        source = source_of(value)
        if source is not None and len(value.uses()) == 1:
            set_source(value, Cast(narrow(source), F16))
            return value
        if isinstance(value.const_value, RowTensor):  # scales, made in the right dtype by quant
            return value
        numbers = value.const_value
        assert numbers is not None and value.name is not None
        array = np.asarray(numbers.numpy()).astype(np.float16)
        name = self.unique(f"{value.name}.half")
        return initializer(self.graph, name, ir.tensor(array, name=name))

    def cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Insert a cast before a node."""
        name = self.unique(f"{value.name}.{dtype.short_name()}")
        node = ir.node("Cast", [value], {"to": dtype}, name=name)
        node.metadata_props.update(before.metadata_props)
        node.metadata_props["surgery.pass"] = Half.name
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{name}_out", ir.TensorType(dtype), value.shape
        self.taken.add(out.name)
        self.graph.insert_before(before, node)
        return out

    def finish(self) -> None:
        """Give float32 back to readers that need it, and to graph outputs but the cache."""
        for value in self.changed:
            needy = [use for use in value.uses() if not self.takes_half(use.node)]
            output = value.is_graph_output() and not is_cache(value)
            if not needy and not output:
                continue
            producer = value.producer()
            assert producer is not None
            following = next(iter(n for n in self.after(producer)), None)
            wide = self.widened(value, producer, following)
            for use in needy:
                use.node.replace_input_with(use.idx, wide)
            if output:
                index = self.graph.outputs.index(value)
                wide.name, value.name = value.name, self.unique(f"{value.name}.half")
                self.graph.outputs[index] = wide

    def widened(self, value: ir.Value, producer: ir.Node, after: ir.Node | None) -> ir.Value:
        """A float32 copy, right behind the node that makes the value."""
        anchor = after or producer
        wide = self.cast(value, F32, anchor)
        if after is None:
            node = wide.producer()
            assert node is not None
            self.graph.remove(node)
            self.graph.append(node)
        node = wide.producer()
        assert node is not None
        node.metadata_props.update(producer.metadata_props)
        return wide

    def after(self, node: ir.Node) -> Iterator[ir.Node]:
        """The nodes behind a node."""
        found = False
        for other in self.graph:
            if found:
                yield other
                return
            found = other is node

    def takes_half(self, node: ir.Node) -> bool:
        """Whether a reader was converted, or casts by itself."""
        if node.op_type == "Cast":
            return True
        if node.graph is not self.graph:
            return node.graph in self.inner
        return any(v.dtype == F16 for v in node.outputs)

    def unique(self, name: str) -> str:
        """A name not in use."""
        candidate, n = name, 1
        while candidate in self.taken:
            n += 1
            candidate = f"{name}.{n}"
        self.taken.add(candidate)
        return candidate


def is_cache(value: ir.Value) -> bool:
    """Whether a value is a past or present key or value of the graph."""
    at_border = value.is_graph_input() or value.is_graph_output()
    return at_border and (value.name or "").startswith(("past_key_values.", "present."))
