"""The generic recipes for other precisions and providers: structure, and numbers on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from export import GRAPHS, exported
from measure import OPTIONS, Result, error, operate

from surgery.engine.targets import TARGETS

KINDS = [
    ("fp16", "cpu", 5e-3),
    ("fp16", "cuda", 5e-3),
    ("fp32", "dml", 5e-6),
    ("int4", "dml", 0.5),
]
OWN = ("matmul_nbits", "half", "opset", "plain_attention")
"""Passes of one precision or provider alone."""
OLDER = {"Attention", "RMSNormalization"}
"""Ops that only opset 23 has."""


@pytest.fixture
def graph(request):
    """A family and its graph, exported once."""
    cache = request.config.cache.mkdir("families")
    return GRAPHS[request.param], exported(request.param, GRAPHS[request.param], cache)


@pytest.mark.parametrize(("precision", "provider", "tolerance"), KINDS)
@pytest.mark.parametrize("graph", GRAPHS, indirect=True)
def test_provider(graph, precision, provider, tolerance):
    """Every pass acts as often as on a CPU, and what is left fits the provider's opset."""
    family, export = graph
    if precision == "int4" and "matmul_nbits" not in family.sites:
        return  # nothing that 4 bits are for
    result = Result(family.sites)
    options = replace(OPTIONS, text_precision=precision, execution_provider=provider)
    model = operate(family, export, options, result)
    fired = {k: n for k, n in result.fired.items() if n and k not in OWN}
    assert fired == {k: n for k, n in family.sites.items() if k not in OWN}
    ops = {node.op_type for graph in model.graphs() for node in graph}
    if TARGETS[provider].opset < 23:
        assert not ops & OLDER
        assert model.opset_imports[""] == TARGETS[provider].opset
    if precision != "fp32":
        types = {i.dtype.name for i in model.graph.initializers.values() if i.dtype is not None}
        assert "FLOAT16" in types
    assert 0 < error(model, export) < tolerance
