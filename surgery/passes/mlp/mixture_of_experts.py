"""A mixture of experts becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.nodes import other_operand, slice_bounds
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Source, interleaved, set_source, source_of, transposed


@dataclass(frozen=True)
class Mixture:
    """A router and its experts."""

    x: ir.Value
    """`[T, H]`, or `[B, S, H]` where the graph only flattens it for the experts."""
    logits: ir.Value
    """`[T, E]`, before the softmax."""
    active: int
    gate_up: tuple[ir.Value, Source]
    """The weight, and its source as `[E, 2I, H]`, gate first."""
    down: tuple[ir.Value, Source]
    """The weight, and its source as `[E, H, I]`."""
    end: ir.Value


class MixtureOfExperts(NodePass[Mixture]):
    """A router and its experts become one node.

    before  p, i = TopK(Softmax(logits), k) ; scores = ScatterElements(zeros, i, p / sum(p)) ;
            gate, up = halves of x * gate_up [E, H, 2I] ; out = (silu(gate) * up * scores) * down
    after   MoE(x, logits, gate_up [E, 2I, H], down [E, H, I]), gate and up rows alternating
    keeps   the weights' names, and values up to the order of sums: the k largest of a softmax
            over all experts, divided by their sum, are a softmax over the k largest logits
    not     experts with another activation; scores that are not divided by their sum
    why     the graph runs every expert on every token: with 8 of 128 active, 16 times the work
    """

    name = "mixture_of_experts"
    needs = ("dims", "fold", "noop")
    anchors = ("TopK",)

    def match(self, node: ir.Node, m: Matcher) -> Mixture:
        """From the choice of experts back to the logits, and on to the sum over experts."""
        probabilities, count = node.inputs[:2]
        softmax = m.producer(probabilities, "Softmax")
        logits = softmax.inputs[0]
        assert logits is not None
        m.rank(logits, 2)
        for chosen in (softmax, node):
            axis = chosen.attributes.get_int("axis", -1)
            m.check(axis in (-1, 1), f"{chosen.op_type} over the experts", f"axis {axis}")
        m.check(node.attributes.get_int("largest", 1) == 1, "the largest", "the smallest")
        active = int(m.constant(count, "a constant number of experts").item())
        scatter = self.scores(node, m)

        turned = m.user(scatter.outputs[0], "Transpose")
        spread = m.user(turned.outputs[0], "Unsqueeze")
        axes = m.constant(spread.inputs[1]).tolist()
        m.check(axes in ([2], [-1]), "one score per row", f"axes {axes}")
        weighted = m.user(spread.outputs[0], "Mul")
        gated = m.user(weighted.outputs[0], "Mul")
        act = m.producer(other_operand(gated, weighted.outputs[0]), "Mul")
        both, gate = self.halves(other_operand(weighted, spread.outputs[0]), m)
        m.check(gate in act.inputs, "silu of the gate", "another value")
        sigmoid = m.producer(other_operand(act, gate), "Sigmoid")
        m.check(sigmoid.inputs[0] is gate, "x * Sigmoid(x)", "another factor")
        product = m.producer(both, "MatMul")
        token = m.producer(product.inputs[0], "Unsqueeze")
        m.check(m.constant(token.inputs[1]).tolist() == [0], "every expert on x", "other axes")
        x = token.inputs[0]
        assert x is not None
        m.rank(x, 2)

        order = m.user(gated.outputs[0], "Transpose")
        perm = list(order.attributes.get_ints("perm", ()))
        m.check(perm == [1, 0, 2], "tokens first", perm)
        flat = m.user(order.outputs[0], "Reshape")
        last = m.user(flat.outputs[0], "MatMul")
        stack = m.producer(last.inputs[1], "Reshape")
        gate_up, down = self.weight(product.inputs[1], m), self.weight(stack.inputs[0], m)
        (experts, width, inner), found = down[1].parts[0][1], gate_up[1].parts[0][1]
        m.check(found == (experts, 2 * inner, width), f"{experts} gates and ups", found)
        x, end = unflattened(x, last.outputs[0])
        return Mixture(x, logits, active, gate_up, down, end)

    def scores(self, node: ir.Node, m: Matcher) -> ir.Node:
        """The node that writes each token's k scores, divided by their sum, into a row of zeros."""
        largest, index = node.outputs
        readers = largest.consumers()
        total = next((n for n in readers if n.op_type == "ReduceSum"), None)
        m.check(total is not None, "scores divided by their sum", [n.op_type for n in readers])
        assert total is not None
        axes = m.constant(total.inputs[1], "a constant axis").tolist()
        m.check(axes in ([-1], [1]), "the sum of a token's scores", f"axes {axes}")
        divide = m.user(total.outputs[0], "Div")
        m.check(divide.inputs[0] is largest, "scores divided by their sum", "another number")
        scatter = m.user(divide.outputs[0], "ScatterElements")
        m.check(scatter.inputs[1] is index, "scores at the experts chosen", "another index")
        axis = scatter.attributes.get_int("axis", 0)
        m.check(axis in (-1, 1), "one score per expert", f"axis {axis}")
        zeros = m.producer(scatter.inputs[0], "ConstantOfShape")
        value = zeros.attributes.get("value")
        zero = value is None or not value.as_tensor().numpy().any()
        m.check(zero, "a score of 0 for other experts", "another number")
        return scatter

    def halves(self, up: ir.Value, m: Matcher) -> tuple[ir.Value, ir.Value]:
        """The product that `up` is the second half of, and its first half, the gate."""
        second = m.producer(up, "Slice")
        both = second.inputs[0]
        assert both is not None
        m.rank(both, 3)
        width = both.shape[-1] if both.shape is not None else None
        m.check(isinstance(width, int), "a known number of columns", width)
        assert isinstance(width, int)
        start, end, axis = slice_bounds(second, m)
        m.check(axis in (-1, 2), "halves of the columns", f"axis {axis}")
        m.check(2 * start == width <= end, "the second half", f"{start} to {end} of {width}")
        first = [n for n in both.consumers() if n.op_type == "Slice" and n is not second]
        m.check(len(first) == 1, "two halves", len(first) + 1)
        found = slice_bounds(first[0], m)
        m.check(found == (0, start, axis), "the first half", found)
        return both, first[0].outputs[0]

    def weight(self, value: ir.Value | None, m: Matcher) -> tuple[ir.Value, Source]:
        """The weight behind an operand `[E, K, N]`, and its source as `[E, N, K]`."""
        assert value is not None
        weight, turned = value, False
        if not value.is_initializer():
            transpose = m.producer(value, "Transpose")
            perm = list(transpose.attributes.get_ints("perm", ()))
            m.check(perm == [0, 2, 1], "the last two axes swapped", perm)
            assert transpose.inputs[0] is not None
            weight, turned = transpose.inputs[0], True
        m.check(weight.is_initializer(), "an initializer", weight.name)
        m.rank(weight, 3)
        source = source_of(weight)
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        assert source is not None
        alone = len(weight.uses()) == 1 and not weight.is_graph_output()
        m.check(alone, f"{weight.name} read by the experts alone", "other readers")
        return weight, source if turned else transposed(source)

    def rewrite(self, node: ir.Node, found: Mixture, add: Builder) -> None:
        """Add one node in place of the last of the old ones."""
        last = found.end.producer()
        assert last is not None
        add.before = last
        (gate_up, upward), (down, downward) = found.gate_up, found.down
        set_source(gate_up, interleaved(upward))
        set_source(down, downward)
        attributes = {
            "k": found.active,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,  # 2, gates before ups, has no kernel on a CPU
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "normalize_routing_weights": 1,
        }
        inputs = [found.x, found.logits, gate_up, None, down]
        fused = add("MoE", inputs, attributes, domain="com.microsoft", like=found.end)
        replace(found.end, fused)


def unflattened(x: ir.Value, end: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Input and output of the experts, in the shape that they had before they were flattened."""
    flatten, readers = x.producer(), end.consumers()
    alone = len(readers) == 1 and readers[0].op_type == "Reshape" and not end.is_graph_output()
    if not alone or flatten is None or flatten.op_type != "Reshape":
        return x, end
    whole, restored = flatten.inputs[0], readers[0].outputs[0]
    if whole is None or whole.shape is None or len(whole.shape) != 3:
        return x, end
    return (whole, restored) if whole.shape == restored.shape else (x, end)
