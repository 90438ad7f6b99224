"""What `-e webgpu` changes: the decoder's ops, where graphs run, and formats of a lookup."""

from collections import Counter

import pytest

from surgery.engine import loading, runner
from surgery.engine.facts import Facts
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.package.genai_config import CPU_RUNS, CPU_SESSIONS, genai_config
from surgery.rewrite import view

LAYERS, LENGTH = 3, 256
ABSENT = {"Attention", "RMSNormalization", "FusedMatMul", "MoE", "QMoE", "Loop", "If"}
"""Ops that the provider has no kernel for, or that keep a graph's nodes off it."""


def done(raw, name, provider, precision="fp32"):
    options = Options(text_precision=precision, execution_provider=provider, max_length=LENGTH)
    facts = Facts.load(raw, options).of(name)
    model = loading.load(facts.raw / f"{name}.onnx", facts.weights)
    for _ in runner.run(name, model, RECIPES[name], facts):
        pass
    return model


@pytest.mark.parametrize("precision", ["fp32", "int4", "fp16"])
def test_decoder(raw, precision):
    model = done(raw, "decoder", "webgpu", precision)
    found = Counter(node.op_type for graph in model.graphs() for node in graph)
    assert not ABSENT & set(found)
    assert model.opset_imports[""] == 21
    product = "MatMulNBits" if precision == "int4" else "MatMul"
    wanted = {
        "GroupQueryAttention": LAYERS,
        "MRotaryEmbedding": 2 * LAYERS,
        "SkipSimplifiedLayerNormalization": 2 * LAYERS,
        "SimplifiedLayerNormalization": 2 * LAYERS + 1,
        "QuickGelu": LAYERS,
        product: 7 * LAYERS + 1,
    }
    assert {op: found[op] for op in wanted} == wanted


@pytest.mark.parametrize("name", ["vision", "embedding"])
def test_other_graphs_are_those_of_a_cpu(raw, name):
    assert view.text(done(raw, name, "webgpu")) == view.text(done(raw, name, "cpu"))


def test_configuration(raw):
    facts = Facts.load(raw, Options(text_precision="fp32", execution_provider="webgpu"))
    model = genai_config(facts)["model"]
    options = {part: model[part]["session_options"] for part in RECIPES}
    assert options["decoder"]["provider_options"] == [{"webgpu": {}}]
    assert "intra_op_num_threads" not in options["decoder"]
    for part in ("vision", "embedding"):
        assert options[part]["provider_options"] == []
        assert CPU_SESSIONS[part].items() <= options[part].items()
    assert model["vision"]["run_options"] == CPU_RUNS["vision"]
    assert not any("run_options" in model[part] for part in ("embedding", "decoder"))


def test_runs_on_a_gpu_have_no_options_of_the_cpu(raw):
    facts = Facts.load(raw, Options(text_precision="fp16", execution_provider="cuda"))
    model = genai_config(facts)["model"]
    assert not any("run_options" in model[part] for part in RECIPES)


@pytest.mark.parametrize(
    ("provider", "width", "words", "fits"),
    [
        ("webgpu", 384, {"head_bits": 4}, False),
        ("webgpu", 512, {"head_bits": 4}, True),
        ("webgpu", 384, {"head_bits": 4, "symmetric": True}, True),
        ("webgpu", 384, {"head_bits": 8}, True),
        ("cpu", 384, {"head_bits": 4}, True),
    ],
)
def test_lookup_with_an_odd_number_of_blocks(provider, width, words, fits):
    """The provider refuses zero points of 4 bits whose rows end in the middle of a byte."""
    options = Options(execution_provider=provider, **words)
    settings = Settings(options=options, head_widths={"head": width})
    assert (settings.table_format("head") is not None) is fits
