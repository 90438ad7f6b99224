"""The recipes on a real export: every count, every sabotaged layer named, the same numbers."""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.engine import loading, runner
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.passes.mlp.silu import Silu
from surgery.rewrite import view
from surgery.rewrite.contract import ExpectationError
from surgery.rewrite.scope import scope

ROOT = Path(__file__).resolve().parents[2]
LAYERS, LEVELS, DEPTH = 3, 2, 4
HIDDEN, KV, HEAD, LENGTH = 64, 2, 32, 256

VISION = {
    "patch_embed": 1,
    "freq_table": 2,
    "qkv_split": DEPTH,
    "rotary": 2 * DEPTH,
    "packed_attention": DEPTH,
    "feature_concat": 1,
}
EMBEDDING = {"feature_gather": 1}
DECODER = {
    "rms_norm": 4 * LAYERS + 1,
    "freq_table": 2,
    "multimodal_rotary": 2 * LAYERS,
    "group_query_attention": LAYERS,
    "deepstack": LEVELS,
    "skip_rms_norm": 2 * LAYERS,
    "silu": LAYERS,
    "last_logits": 1,
}
COUNTS = {
    ("vision", "fp32"): VISION,
    ("vision", "fp16"): {**VISION, "skip_layer_norm": 2 * DEPTH},
    ("vision", "int4"): {**VISION, "matmul_int8": 4 * DEPTH + 2 * (1 + LEVELS)},
    ("vision", "int8"): {**VISION, "matmul_int8": 4 * DEPTH + 2 * (1 + LEVELS)},
    ("embedding", "fp32"): EMBEDDING,
    ("decoder", "fp32"): {**DECODER, "weight_transpose": 7 * LAYERS + 1},
    ("decoder", "int4"): {**DECODER, "matmul_nbits": 7 * LAYERS + 1, "weight_transpose": 0},
    ("decoder", "prefill"): {
        **DECODER,
        "long_input": 1,
        "matmul_int8": 7 * LAYERS,
        "matmul_nbits": 7 * LAYERS + 1,
    },
}


def facts_of(raw, precision="fp32"):
    words = {
        "int8": {"precision": "int8"},
        "fp16": {"precision": "fp16"},
        "prefill": {"text_precision": "int4", "prefill": "int8"},
    }.get(precision, {"text_precision": precision})
    return Facts.load(raw, Options(**words, max_length=LENGTH))


def load(raw, name):
    facts = facts_of(raw)
    model = loading.load(facts.raw / f"{name}.onnx", facts.weights)
    model.graph.sort()
    return model


@functools.cache
def done(raw, name, precision="fp32"):
    """The graph after its recipe, and the records; tests only look at it."""
    model = load(raw, name)
    records = list(runner.run(name, model, RECIPES[name], facts_of(raw, precision)))
    return model, records


@pytest.mark.parametrize(("name", "precision"), COUNTS)
def test_counts(raw, name, precision):
    model, records = done(raw, name, precision)
    found = {}
    for record in records:
        found[record.name] = found.get(record.name, 0) + record.sites
    wanted = COUNTS[name, precision]
    assert {pass_name: found[pass_name] for pass_name in wanted} == wanted
    assert all(record.met for record in records)
    assert records[-1].after == view.size(model)
    for before, after in itertools.pairwise(records):
        assert before.after == after.before


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_decoder_layer(raw, golden_text, precision):
    """Every node of a decoder layer, and that all layers are alike."""
    model, _ = done(raw, "decoder", precision)
    layers = []
    for layer in range(LAYERS):
        path = f"model.language_model.layers.{layer}"
        nodes = [n for n in model.graph if f"{scope(n)}.".startswith(f"{path}.")]
        layers.append([f"{scope(n).removeprefix(path).lstrip('.') or '-'} {n.op_type}"
                       for n in nodes])  # fmt: skip
    alike = [[line for line in lines if line != "- Add"] for lines in layers]
    assert sorted(alike[1]) == sorted(alike[2])
    golden_text(f"decoder_layer_{precision}", "\n".join(layers[1]) + "\n")
    assert not {"Attention", "ScatterND", "NonZero", "Cos", "Range"} & set(view.histogram(model))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_vision_block(raw, golden_text, precision):
    """Every node of a block of the tower, but for those in branches."""
    model, _ = done(raw, "vision", precision)
    path = "model.visual.blocks.1"
    nodes = [n for n in model.graph if f"{scope(n)}.".startswith(f"{path}.")]
    lines = [f"{scope(n).removeprefix(path).lstrip('.') or '-'} {n.op_type}" for n in nodes]
    golden_text(f"vision_block_{precision}", "\n".join(lines) + "\n")


@pytest.mark.parametrize("name", RECIPES)
def test_raw_graph_is_sorted(raw, name):
    """Every node of an export comes after those that it reads."""
    graph = onnx.load(raw / f"{name}.onnx", load_external_data=False).graph
    known = {v.name for v in (*graph.input, *graph.initializer)} | {""}
    for node in graph.node:
        assert known.issuperset(node.input), f"{node.name} reads {set(node.input) - known}"
        known.update(node.output)


@pytest.mark.parametrize("name", ["vision", "embedding", "decoder"])
def test_domains_are_imported(raw, name):
    """onnxruntime is lenient here; the format and its checker are not."""
    model, _ = done(raw, name)
    used = {node.domain for graph in model.graphs() for node in graph}
    assert used <= set(model.opset_imports)


def test_interfaces(raw):
    """What the runtime feeds and reads."""
    names = {name: done(raw, name)[0] for name in RECIPES}
    ends = {n: ([v.name for v in m.graph.inputs], [v.name for v in m.graph.outputs])
            for n, m in names.items()}  # fmt: skip
    assert ends["vision"] == (["pixel_values", "image_grid_thw"], ["image_features"])
    assert ends["embedding"] == (
        ["input_ids", "image_features"],
        ["inputs_embeds", "per_layer_inputs"],
    )
    cache = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    fixed = ["inputs_embeds", "per_layer_inputs", "attention_mask", "position_ids"]
    assert ends["decoder"] == (
        [*fixed, *(f"past_key_values.{n}" for n in cache)],
        ["logits", *(f"present.{n}" for n in cache)],
    )


def find(model, op, module, index=0):
    """A node by op type and module path."""
    return [n for n in model.graph if n.op_type == op and scope(n) == module][index]


def negate_mask(model):
    node = find(model, "Attention", "model.language_model.layers.1.self_attn")
    other = ir.node("Not", [node.inputs[3]], name="sabotage")
    other.outputs[0].name = "sabotage_out"
    model.graph.insert_before(node, other)
    node.replace_input_with(3, other.outputs[0])


def make_causal(model):
    node = find(model, "Attention", "model.visual.blocks.2.attn")
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)


def join_heads(model):
    (node,) = (n for n in model.graph if n.outputs[0].name == "present.2.value")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


def cube(model):
    node = find(model, "Pow", "model.language_model.layers.0.self_attn.q_norm")
    three = ir.Value(name="three", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]),
                     const_value=ir.tensor(np.float32(3), name="three"))  # fmt: skip
    model.graph.register_initializer(three)
    node.replace_input_with(1, three)


def turn_other_way(model):
    """Rotate the second layer's keys by the negative angle."""
    module = "model.language_model.layers.1.self_attn"
    node = find(model, "Neg", module, 1)
    node.op_type = "Abs"


def gate_elsewhere(model):
    node = find(model, "Sigmoid", "model.language_model.layers.2.mlp.act_fn")
    node.op_type = "Tanh"


SABOTAGE = [
    ("decoder", negate_mask, "group_query_attention", LAYERS - 1, LAYERS,
     "model.language_model.layers.1.self_attn: needs a causal and padding mask"),
    ("decoder", join_heads, "group_query_attention", LAYERS - 1, LAYERS,
     "model.language_model.layers.2.self_attn: needs past and new joined along axis 2; found 1"),
    ("decoder", cube, "rms_norm", 4 * LAYERS, 4 * LAYERS + 1,
     "model.language_model.layers.0.self_attn.q_norm: needs an exponent of 2; found 3"),
    ("decoder", turn_other_way, "multimodal_rotary", 2 * LAYERS - 1, 2 * LAYERS, ""),
    ("decoder", gate_elsewhere, "silu", LAYERS - 1, LAYERS, ""),
    ("vision", make_causal, "packed_attention", DEPTH - 1, DEPTH,
     "model.visual.blocks.2.attn: needs attention that is neither causal nor capped"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sabotage", "work", "found", "expected", "miss"),
    SABOTAGE,
    ids=[case[1].__name__ for case in SABOTAGE],
)
def test_sabotaged_layer(raw, name, sabotage, work, found, expected, miss):
    """One layer that is not as it should be is an error with its path, not a slower graph."""
    model = load(raw, name)
    sabotage(model)
    with pytest.raises(ExpectationError) as error:
        list(runner.run(name, model, RECIPES[name], facts_of(raw)))
    message = str(error.value)
    assert message.startswith(f"{work}: {found} sites in the {name} graph, expected {expected}.")
    assert "\n" not in message and f"explain {work}" in message
    if miss:
        assert f"Nearest miss: {miss}" in message


def test_scale_is_no_condition(raw):
    """Another softmax scale in one layer is carried over, layer by layer."""
    model = load(raw, "decoder")
    node = find(model, "Attention", "model.language_model.layers.1.self_attn")
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.25)
    list(runner.run("decoder", model, RECIPES["decoder"], facts_of(raw)))
    scales = [n.attributes["scale"].as_float() for n in model.graph if "Query" in n.op_type]
    assert [round(scale, 4) for scale in scales] == [0.1768, 0.25, 0.1768]


def spread(mask, features):
    """DeepStack features as `per_layer_inputs`."""
    out = np.zeros((*mask.shape, features.shape[0] * features.shape[2]), np.float32)
    out[mask] = np.concatenate(list(features), -1)
    return out


def decoder_feeds(rng, b, s, p, pictures):
    mask = rng.random((b, s)) < 0.6 if pictures else np.zeros((b, s), bool)
    features = rng.standard_normal((LEVELS, int(mask.sum()), HIDDEN)).astype(np.float32)
    feeds = {
        "inputs_embeds": rng.standard_normal((b, s, HIDDEN)).astype(np.float32),
        "attention_mask": np.ones((b, p + s), np.int64),
        "position_ids": rng.integers(0, LENGTH, (3, b, s)),
        "visual_pos_masks": mask,
        "deepstack_features": features,
        "per_layer_inputs": spread(mask, features),
    }
    for i in range(LAYERS):
        for part in ("key", "value"):
            past = rng.standard_normal((b, KV, p, HEAD)).astype(np.float32)
            feeds[f"past_key_values.{i}.{part}"] = past
    return feeds


def test_decoder_numbers(raw, runner_of, rng):
    """Raw graph and shop's graph: the same last logits, the same cache."""
    before, after = runner_of(load(raw, "decoder")), runner_of(done(raw, "decoder")[0])
    shapes = [(1, 1, 0), (1, 7, 0), (3, 5, 0), (3, 1, 12), (1, 4, 9), (2, 1, 1)]
    for b, s, p in shapes:
        for pictures in (True, False):
            feeds = decoder_feeds(rng, b, s, p, pictures)
            want, got = before(feeds), after(feeds)
            want["logits"] = want["logits"][:, -1:]
            for name in want:
                np.testing.assert_allclose(
                    got[name], want[name], rtol=1e-3, atol=2e-4, err_msg=f"{name} at {b, s, p}"
                )


GRIDS = [
    [[1, 4, 4]],
    [[1, 2, 2]],
    [[1, 4, 6], [1, 4, 6]],
    [[1, 4, 6], [1, 2, 8], [1, 6, 2]],
    [[3, 4, 4]],
    [[2, 2, 4], [1, 8, 4]],
    [[1, 2, 40]],
]


def test_vision_numbers(raw, runner_of, rng):
    """One picture, equal ones, unequal ones, frames of a video, a panorama."""
    before, after = runner_of(load(raw, "vision")), runner_of(done(raw, "vision")[0])
    for grids in GRIDS:
        grid = np.array(grids, np.int64)
        patches = int(grid.prod(-1).sum())
        pixels = rng.standard_normal((patches, 3 * 2 * 16 * 16)).astype(np.float32)
        feeds = {"pixel_values": pixels, "image_grid_thw": grid}
        want, got = before(feeds), after(feeds)
        columns = np.concatenate([want["image_features"], *want["deepstack_features"]], -1)
        scale = np.abs(columns).max()
        np.testing.assert_allclose(
            got["image_features"], columns, rtol=1e-3, atol=1e-4 * scale, err_msg=str(grids)
        )


def test_embedding_numbers(raw, runner_of, rng):
    """Bit for bit, where every placeholder has its feature."""
    before, after = runner_of(load(raw, "embedding")), runner_of(done(raw, "embedding")[0])
    picture = facts_of(raw).config["image_token_id"]
    for shape in ((1, 1), (3, 9), (2, 4)):
        ids = rng.integers(0, 500, shape)
        ids[rng.random(shape) < 0.5] = picture
        wide = rng.standard_normal((int((ids == picture).sum()), 3 * HIDDEN)).astype(np.float32)
        want = before({"input_ids": ids, "image_features": np.ascontiguousarray(wide[:, :HIDDEN])})
        got = after({"input_ids": ids, "image_features": wide})
        assert np.array_equal(got["inputs_embeds"], want["inputs_embeds"])
        assert np.array_equal(got["per_layer_inputs"][ids == picture], wide[:, HIDDEN:])
        assert not got["per_layer_inputs"][ids != picture].any()


def test_two_passes_alone(raw):
    """A pass works outside its recipe, and `diff` shows what it did."""
    model, facts = load(raw, "decoder"), facts_of(raw)
    for record in runner.run("decoder", model, RECIPES["decoder"], facts):
        if record.name == "deepstack":
            break
    before = view.text(model)
    work = Silu()
    work(model)
    assert work.count == LAYERS
    changed = [line for line in view.diff(before, view.text(model)).splitlines()
               if line.startswith(("+", "-")) and "Sigmoid" in line]  # fmt: skip
    assert len(changed) == LAYERS
    work(model)
    assert work.count == 0


SCRIPT = """
import hashlib, sys
from pathlib import Path
from surgery.engine import loading, runner
from surgery.rewrite import view
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.engine.recipes.qwen_vl import RECIPES
facts = Facts.load(Path(sys.argv[1]), Options(text_precision="int4", max_length=64))
for name in ("embedding", "decoder"):
    model = loading.load(facts.raw / f"{name}.onnx", facts.weights)
    for record in runner.run(name, model, RECIPES[name], facts):
        print(record.name, hashlib.sha256(view.text(model).encode()).hexdigest())
"""


def test_text_does_not_depend_on_the_process(raw):
    """Byte for byte the same after every pass, whatever the seed of Python's hashes."""
    printed = []
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(raw)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1] and printed[0].count("\n") > 15
