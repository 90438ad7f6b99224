"""The last hidden states as an output beside the logits."""

from __future__ import annotations

import onnx_ir as ir

from surgery.match.logits import before_head
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

NAME = "hidden_states"


class HiddenStates(NodePass[ir.Value]):
    """The input of the output projection (the head) becomes a graph output.

    before  logits = MatMul(hidden [B, S, H], head)
    after   the same, and hidden_states = hidden, an output
    keeps   the logits
    not     a graph that has the output already
    why     embedding models pool the hidden state of the last token, rerankers and probes read it;
            onnxruntime-genai returns an output by its name (`Generator.get_output`)
    """

    name = "hidden_states"
    anchors = ("MatMul",)

    def match(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The hidden states before the head."""
        hidden = before_head(node, m)
        m.check(not hidden.is_graph_output(), "a value inside the graph", hidden.name)
        m.check(hidden.producer() is not None, "a value that a node makes", hidden.name)
        return hidden

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Rename the value and append it to the outputs."""
        for other in ir.traversal.RecursiveGraphIterator(add.graph):
            for value in other.outputs:
                if value.name == NAME and value is not found:
                    value.name = f"{NAME}_inner"
        found.name = NAME
        add.graph.outputs.append(found)
