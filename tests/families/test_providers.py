"""The generic recipes for other precisions and providers: structure, and numbers on the CPU.

Two decoders and two towers of different shape run always; the other graphs with `--nightly`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from export import GRAPHS, exported
from measure import OPTIONS, Result, error, operate

from surgery.engine.targets import TARGETS

pytestmark = pytest.mark.nightly  # exports models, which takes minutes

KINDS = [
    ("fp16", "cpu", 5e-3),
    ("fp16", "cuda", 5e-3),
    ("fp32", "dml", 5e-6),
    ("int4", "dml", 0.5),
]
OWN = ("matmul_nbits", "half", "opset", "plain_attention")
"""Passes of one precision or provider alone."""
ALWAYS = (
    *("PaliGemma 2, decoder", "Qwen2.5-VL, decoder"),
    *("InternVL, vision", "Qwen2.5-VL, vision"),
)
"""Softcap and sandwich norms; multimodal rotary; whole pictures; packed windows."""
CASES = [
    pytest.param(name, *kind, marks=[] if name in ALWAYS else pytest.mark.nightly)
    for name, family in GRAPHS.items()
    for kind in KINDS
    if kind[0] != "int4" or "matmul_nbits" in family.sites  # else nothing that 4 bits are for
]
OLDER = {"Attention", "RMSNormalization"}
"""Ops that only opset 23 has."""


@pytest.mark.parametrize(("name", "precision", "provider", "tolerance"), CASES)
def test_provider(request, name, precision, provider, tolerance):
    """Every pass acts as often as on a CPU, and what is left fits the provider's opset."""
    family = GRAPHS[name]
    export = exported(name, family, request.config.cache.mkdir("families"))
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
