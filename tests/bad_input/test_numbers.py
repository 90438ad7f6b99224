"""Numbers that are not finite, or leave float16, are refused by the name of their weight."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from weighted_graph import write

import quant
from surgery.__main__ import main
from surgery.base.errors import PackageError
from surgery.package.external_data import write_graphs
from surgery.package.finite import is_finite
from surgery.rewrite.weights import (
    Cast,
    Inline,
    Quantized,
    RowQuantized,
    RowTensor,
    Stored,
    Transposed,
)

TEXT, VISUAL = "model.language_model", "model.visual"
WEIGHTS = {
    "norm of a layer": f"{TEXT}.layers.1.input_layernorm.weight",
    "norm of heads": f"{TEXT}.layers.0.self_attn.q_norm.weight",
    "last norm": f"{TEXT}.norm.weight",
    "linear": f"{TEXT}.layers.2.mlp.down_proj.weight",
    "table": f"{TEXT}.embed_tokens.weight",
    "tower's bias": f"{VISUAL}.blocks.1.attn.qkv.bias",
    "tower's linear": f"{VISUAL}.blocks.0.mlp.linear_fc1.weight",
    "tower's norm": f"{VISUAL}.blocks.3.norm2.weight",
    "patches": f"{VISUAL}.patch_embed.proj.weight",
    "positions": f"{VISUAL}.pos_embed.weight",
    "merger's bias": f"{VISUAL}.merger.linear_fc2.bias",
}
OPTIONS = (("-t", "int4"), ("-t", "fp32"), ("-t", "fp16", "-p", "fp16"), ("-e", "cuda"))
CASES = [
    (name, (float("nan"), float("-inf"))[i % 2], OPTIONS[i % len(OPTIONS)])
    for i, name in enumerate(WEIGHTS.values())
]
CASES += [(WEIGHTS[what], float("nan"), ("-p", "int8")) for what in ("tower's linear", "patches")]
"""Every weight; NaN and infinity, and the options, in turn; a tower in 8 bits."""


@pytest.fixture
def damaged(raw, moved):
    """Write a number over the third one of a weight, in a checkpoint of this export's own."""
    manifest = json.loads((raw / "manifest.json").read_text())
    manifest.pop("samples", None)  # or the checkpoint would count as changed
    (raw / "manifest.json").write_text(json.dumps(manifest))

    def damage(name, number):
        path = moved / "model.safetensors"
        data = bytearray(path.read_bytes())
        (size,) = struct.unpack("<Q", data[:8])
        entry = json.loads(data[8 : 8 + size])[name]
        assert entry["dtype"] == "BF16"
        place = 8 + size + entry["data_offsets"][0] + 4
        data[place : place + 2] = np.array(number, ml_dtypes.bfloat16).tobytes()
        path.write_bytes(data)

    return damage


@pytest.mark.parametrize(("name", "number", "words"), CASES)
def test_a_weight_that_is_not_finite(refused, raw, damaged, tmp_path, name, number, words):
    damaged(name, number)
    line = refused(main, "-i", raw, "-o", tmp_path / "package", *words)
    what = "NaN" if np.isnan(number) else "infinity"
    assert f"error: {name}: holds {what} (1 of them)" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (WEIGHTS["linear"], ("-t", "fp16")),
        (WEIGHTS["linear"], ("-t", "fp16", "-e", "cuda")),
        (WEIGHTS["linear"], ("-t", "int4", "-e", "cuda")),
        (WEIGHTS["tower's linear"], ("-p", "fp16", "-e", "cuda")),
        (WEIGHTS["tower's bias"], ("-p", "fp16", "-e", "cuda")),
        (WEIGHTS["patches"], ("-p", "fp16", "-e", "cuda")),
    ],
)
def test_a_weight_beyond_float16(refused, raw, damaged, tmp_path, name, words):
    damaged(name, 1e7)
    line = refused(main, "-i", raw, "-o", tmp_path / "package", *words)
    assert line.startswith(f"error: {name}: ") and "-t fp32" in line
    assert "10,027,008" in line or "1e+07" in line  # the bfloat16 next to 1e7


def test_the_same_weight_in_float32_is_fine(raw, damaged, tmp_path):
    damaged(WEIGHTS["linear"], 1e7)
    assert main(["-i", str(raw), "-o", str(tmp_path / "package"), "-t", "fp32", "--quiet"]) == 0


SPECIAL = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_number_counts(dtype):
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((7, 33)).astype(dtype)
    plain[0, :3] = np.finfo(np.float16).max, -0.0, 6e-8  # largest, sign, subnormal
    assert is_finite(plain) and is_finite(plain[:, ::2]) and is_finite(plain[:0])
    for number in SPECIAL:
        for place in ((0, 0), (3, 17), (6, 32)):
            broken = plain.copy()
            broken[place] = number
            assert not is_finite(broken) and not is_finite(broken.T)


def test_integers_are_finite():
    assert is_finite(np.full(5, 0x7C00, np.uint16)) and is_finite(np.full(5, -1, np.int64))


def graph_of(tensor):
    value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
    value.shape = ir.Shape(tensor.shape)
    return ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10)


@pytest.mark.parametrize("rows", [3, 300])  # inside the graph, and in the data file
def test_masks_of_other_graphs_stay(tmp_path, rows):
    """Infinity in a graph that somebody exported may be meant; what a cast makes is not."""
    mask = np.triu(np.full((rows, 4), -np.inf, np.float32))
    tensor = RowTensor(Cast(Inline(ir.tensor(mask)), ir.DataType.FLOAT16), name="mask")
    write_graphs({"a.onnx": graph_of(tensor)}, tmp_path)
    found = ir.load(tmp_path / "a.onnx").graph.initializers["mask"].const_value.numpy()
    assert np.array_equal(found, mask.astype(np.float16))
    with pytest.raises(PackageError, match="mask: holds infinity"):
        write_graphs({"a.onnx": graph_of(tensor)}, tmp_path, strict=True)
    mask[1, 1] = 7e4
    with pytest.raises(PackageError, match=r"w: holds 70,000, beyond 65,504.*-t fp32"):
        weight = np.where(np.isinf(mask), 0, mask).astype(np.float32)
        tensor = RowTensor(Cast(Inline(ir.tensor(weight)), ir.DataType.FLOAT16), name="w")
        write_graphs({"a.onnx": graph_of(tensor)}, tmp_path)


GRAPH = """<ir_version: 8, opset_import: ["": 17]>
g (float[n,64] x, float[64,128] w_wide, float[128,64] w_back) => (float[n,64] y) {
  h = MatMul(x, w_wide)
  y = MatMul(h, w_back)
}"""


@pytest.mark.parametrize("number", SPECIAL)
@pytest.mark.parametrize("external", [False, True])
def test_weights_of_other_graphs_name_their_file(refused, tmp_path, number, external):
    """The weight, and the file that holds it: the graph's own, or the one beside it."""
    path = write(GRAPH, tmp_path / "model.onnx")
    model = onnx.load(path)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[3, 5] = number
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight, "w_back"))
    onnx.save(model, path, save_as_external_data=external, location="data.bin", size_threshold=0)
    words = ("-o", tmp_path / "out", "--recipe", "decoder", "-t", "int4")
    line = refused(main, "apply", "-i", path, *words)
    assert "w_back: holds " in line and f"{tmp_path / 'data.bin' if external else path} is" in line


FORMAT = quant.BlockFormat(4, 32, True)


@pytest.mark.parametrize(
    "make",
    [
        lambda source: RowTensor(Quantized(source, FORMAT), name="layer.w.packed"),
        lambda source: RowTensor(RowQuantized(source), part=1, name="layer.w.scales"),
        lambda source: RowTensor(Transposed(RowQuantized(source)), name="layer.w.codes"),
    ],
    ids=["blocks", "scales of rows", "rows, transposed"],
)
def test_quantized_weights_are_named(tmp_path, make):
    weight = np.ones((1040, 64), np.float32)
    weight[1033, 5] = np.nan
    tensor = make(Inline(ir.tensor(weight)))
    with pytest.raises(PackageError, match=r"^layer.w: holds NaN \(1 of them\)"):
        write_graphs({"a.onnx": graph_of(tensor)}, tmp_path)


def test_a_shard_that_shrank(tmp_path):
    (tmp_path / "shard").write_bytes(bytes(100))
    tensor = RowTensor(Stored(tmp_path / "shard", 0, ir.DataType.FLOAT, (40, 64)), name="w")
    with pytest.raises(PackageError, match=r"the file was cut after the export"):
        write_graphs({"a.onnx": graph_of(tensor)}, tmp_path)
