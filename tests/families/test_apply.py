"""`python -m surgery apply`: graphs that nobody here exported."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from weighted_graph import write

from surgery.__main__ import main
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.selection import names, passes

HEADS = """  q0 = MatMul(h, w_q)
  k0 = MatMul(heard, w_k)
  v0 = MatMul(heard, w_v)
  q1 = Reshape(q0, split)
  k1 = Reshape(k0, split)
  v1 = Reshape(v0, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q1)
  v = Transpose<perm = [0, 2, 1, 3]>(v1)"""
"""Queries of `h`, keys and values of `heard`, split into heads; the keys not moved yet."""
OLD = """<ir_version: 7, opset_import: ["": 14]>
g (float[batch,sequence,64] x, float[64] w_norm, float[64] w_bias, float[64,64] w_q,
   float[64,64] w_k, float[64,64] w_v, float[64,64] w_out, float[64,64] w_up)
=> (float[batch,sequence,64] y)
<float two = {2}, float eps = {0.00001}, int64 nil = {0}, int64 first = {1}, int64[1] front = {0},
 int64[1] heads = {4}, int64[1] wide = {16}, int64[1] all = {64}, float root = {0.5},
 float bend = {1.4142135}, float one = {1}, float half = {0.5}> {
  mean = ReduceMean<axes = [-1]>(x)
  d = Sub(x, mean)
  squares = Pow(d, two)
  variance = ReduceMean<axes = [-1]>(squares)
  shifted = Add(variance, eps)
  deviation = Sqrt(shifted)
  normed = Div(d, deviation)
  scaled = Mul(normed, w_norm)
  h = Add(scaled, w_bias)
  sizes = Shape(h)
  b0 = Gather<axis = 0>(sizes, nil)
  s0 = Gather<axis = 0>(sizes, first)
  b1 = Unsqueeze(b0, front)
  s1 = Unsqueeze(s0, front)
  split = Concat<axis = 0>(b1, s1, heads, wide)
  merged = Concat<axis = 0>(b1, s1, all)
{HEADS}
  k = Transpose<perm = [0, 2, 3, 1]>(k1)
  qr = Mul(q, root)
  kr = Mul(k, root)
  scores = MatMul(qr, kr)
  weights = Softmax<axis = -1>(scores)
  mixed = MatMul(weights, v)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  flat = Reshape(back, merged)
  out = MatMul(flat, w_out)
  sum = Add(x, out)
  up = MatMul(sum, w_up)
  e0 = Div(up, bend)
  e1 = Erf(e0)
  e2 = Add(e1, one)
  e3 = Mul(up, e2)
  act = Mul(e3, half)
  y = Add(sum, act)
}""".replace("{HEADS}", HEADS.replace("heard", "h"))
"""One layer as exporters wrote it years ago; without shapes of anything inside."""
FIRED = {"static_reshape": 4, "layer_norm": 1, "attention": 1, "multi_head_attention": 1, "gelu": 1}


@pytest.fixture
def graph(tmp_path):
    """An .onnx file with its weights inside."""
    return write(OLD, tmp_path / "layer.onnx")


def run(path, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize("words", [["apply"], ["--recipe", "vision"], ["--recipe=any"]])
def test_old_graph(graph, tmp_path, words):
    """Old opset, no shapes, weights inside: every pass acts, the numbers stay."""
    out = tmp_path / "out"
    assert main([*words, "-i", str(graph), "-o", str(out)]) == 0
    record = json.loads((out / "surgery.json").read_text(encoding="utf-8"))
    counts = {entry["pass"]: entry["sites"] for entry in record["graphs"]["layer.onnx"]}
    assert {name: counts[name] for name in FIRED} == FIRED
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (2, 17)):
        feeds = {"x": rng.standard_normal((*shape, 64)).astype(np.float32)}
        want, got = run(graph, feeds), run(out / "layer.onnx", feeds)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_folder(graph, tmp_path):
    """Every graph of a folder; 4 bits for all that multiplies with a weight."""
    (tmp_path / "many").mkdir()
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "many" / name).write_bytes(graph.read_bytes())
    out = tmp_path / "out"
    assert main(["apply", "-i", str(tmp_path / "many"), "-o", str(out), "-t", "int4"]) == 0
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 5, 64)).astype(np.float32)}
    want = run(graph, feeds)
    for name in ("a.onnx", "b.onnx"):
        ops = [node.op_type for node in onnx.load(out / name, load_external_data=False).graph.node]
        assert ops.count("MatMulNBits") == 5
        error = np.abs(run(out / name, feeds) - want).max() / np.abs(want).max()
        assert 1e-4 < error < 0.2


def test_again(graph, tmp_path):
    """An output is replaced with --force, and taken as an input finds nothing left to do."""
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["apply", "-i", str(graph), "-o", str(out)]) == 0
    assert main(["apply", "-i", str(graph), "-o", str(out), "--force"]) == 0
    assert main(["apply", "-i", str(out), "-o", str(again)]) == 0
    record = json.loads((again / "surgery.json").read_text(encoding="utf-8"))
    counts = {entry["pass"]: entry["sites"] for entry in record["graphs"]["layer.onnx"]}
    assert not any(counts[name] for name in FIRED)


def test_explain(graph, capsys):
    """Sites right before the pass, in the generic recipe that is named or the one for any graph."""
    for words, before in (
        ([], "group_query_attention"),
        (["--recipe", "vision"], "attention_heads"),
        (["--recipe=any", "--graph", "layer"], "group_query_attention"),
    ):
        assert main(["explain", "multi_head_attention", "-i", str(graph), *words]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"layer, after {before}: 1 sites\n"), out
    assert main(["explain", "static_reshape", "-i", str(graph), "--all"]) == 0
    assert capsys.readouterr().out.startswith("layer, after weight_cast: 4 sites\n")
    half = ["-t", "fp16", "-e", "dml"]
    assert main(["explain", "half", "-i", str(graph), *half]) == 0
    assert capsys.readouterr().out.startswith("layer, after reshape_chain: 7 sites\n")


def test_explain_near_miss(tmp_path, capsys):
    """What nearly is a site, and the condition that fails."""
    cubes = write(OLD.replace("Pow(d, two)", "Pow(d, bend)"), tmp_path / "cubes.onnx")
    assert main(["explain", "layer_norm", "-i", str(cubes)]) == 0
    out = capsys.readouterr().out
    assert "0 sites\n  1 near-misses\n" in out
    assert "needs   an exponent of 2\n    found   1.4142" in out


EXPLAIN_BAD = {
    "pass": (["layer_nrom"], "explain layer_nrom: no such name; did you mean layer_norm?"),
    "no step": (["half"], "half: this pass does not run with these options."),
    "recipe": (
        ["multi_head_attention", "--recipe", "visoin"],
        "--recipe visoin: no such name; did you mean vision?",
    ),
    "other recipe": (
        ["group_query_attention", "--recipe", "vision"],
        "group_query_attention: the vision recipe does not contain this pass.",
    ),
    "graph": (
        ["multi_head_attention", "--graph", "later"],
        "--graph later: no such name; did you mean layer?",
    ),
}


@pytest.mark.parametrize(("words", "message"), EXPLAIN_BAD.values(), ids=EXPLAIN_BAD)
def test_explain_bad_input(graph, capsys, words, message):
    assert main(["explain", *words, "-i", str(graph)]) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split()) and err.count("\n") == 1


def test_list(capsys):
    """The generic recipes and their passes stand beside the package's."""
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name, recipe in GENERIC.items():
        assert f"\n{name:<10} {' > '.join(names(recipe))}\n" in out
    for name, made in passes(GENERIC).items():
        assert out.count(f"\n{name}: {made.describe()['summary']}\n") == 1


BAD = {
    "no file": (["-i", "missing.onnx"], "missing.onnx: no such file"),
    "no graph": (["-i", "text.onnx"], "text.onnx: no ONNX graph"),
    "empty folder": (["-i", "empty"], "empty: no .onnx file in this folder"),
    "recipe": (["-i", "layer.onnx", "--recipe", "decodr"], "did you mean decoder?"),
    "occupied": (["-i", "layer.onnx", "-o", "full"], "full: not empty"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input(graph, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    words = words if "-o" in words else [*words, "-o", "out"]
    assert main(["apply", *words]) != 0
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).split())
    assert (tmp_path / "full" / "kept.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


TIED = """<ir_version: 10, opset_import: ["": 23]>
g (int64[batch,sequence] ids, float[96,64] w_table) => (float[batch,sequence,96] logits)
<float cap = {3}> {
  x = Gather<axis = 0>(w_table, ids)
  turned = Transpose<perm = [1, 0]>(w_table)
  product = MatMul(x, turned)
  scaled = Div(product, cap)
  bent = Tanh(scaled)
  logits = Mul(bent, cap)
}"""


def test_head_of_any_name(tmp_path):
    """The weight behind the logits is the head, whatever it is called: it gets 8 bits."""
    path = write(TIED, tmp_path / "tied.onnx")
    assert main(["apply", "-i", str(path), "-o", str(tmp_path / "out"), "-t", "int4"]) == 0
    nodes = onnx.load(tmp_path / "out" / "tied.onnx", load_external_data=False).graph.node
    (product,) = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert {a.name: a.i for a in product.attribute}["bits"] == 8


GEMM = """<ir_version: 10, opset_import: ["": 17]>
g (float[rows,64] x, float[96,64] w_up, float[96] b_up, float[96,64] w_down) => (float[rows,64] y) {
  up = Gemm<transB = 1>(x, w_up, b_up)
  act = Relu(up)
  y = Gemm(act, w_down)
}"""


def test_gemm_in_four_bits(tmp_path):
    """Linear layers as older exporters write them are quantized too."""
    path = write(GEMM, tmp_path / "gemm.onnx")
    assert main(["apply", "-i", str(path), "-o", str(tmp_path / "out"), "-t", "int4"]) == 0
    graph = onnx.load(tmp_path / "out" / "gemm.onnx", load_external_data=False).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("MatMulNBits") == 2 and "Gemm" not in ops
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((5, 64)).astype(np.float32), "b_up": np.zeros(96, np.float32)}
    want, got = run(path, feeds), run(tmp_path / "out" / "gemm.onnx", feeds)
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 0.3


def test_explain_without_an_anchor(graph, tmp_path, capsys):
    """An attention that no pass made one node of is not passed over in silence."""
    text = OLD.replace("scores = MatMul(qr, kr)", "s = MatMul(qr, kr)\n  scores = Sin(s)")
    odd = write(text, tmp_path / "odd.onnx")
    assert main(["explain", "multi_head_attention", "-i", str(odd)]) == 0
    out = capsys.readouterr().out
    assert "no Attention stands in the graph" in out and "see explain attention" in out
    assert main(["explain", "attention", "-i", str(odd)]) == 0
    out = capsys.readouterr().out
    assert "needs   scores from" in out and "found   Sin" in out


MIXED = """<ir_version: 8, opset_import: ["": 17]>
g (int64[batch,sequence] ids, float[300,96] w_table, float[40,96] w_places, float[96,96] w_left,
   float[96,96] w_right, float[96,1,16] w_kernel)
=> (float[batch,sequence,300] logits)
<int64[1] front = {0}, int64 most = {40}> {
  h = Gather(w_table, ids)
  places = Mod(ids, most)
  p = Gather(w_places, places)
  x = Add(h, p)
  columns = Transpose<perm = [0, 2, 1]>(x)
  mixed = MatMul(w_left, columns)
  wide = Conv<group = 96, kernel_shape = [16], pads = [15, 0]>(mixed, w_kernel)
  rows = Transpose<perm = [0, 2, 1]>(wide)
  y = MatMul(rows, w_right)
  head = Transpose<perm = [1, 0]>(w_table)
  logits = MatMul(y, head)
}"""
"""A table that is the head too, a weight on the left, and weights that have no quantized form."""


def test_formats_are_chosen_on_the_command_line(tmp_path):
    """Blocks, zero points, and the weights that stay in float."""
    path, out = write(GEMM, tmp_path / "gemm.onnx"), tmp_path / "out"
    words = ["--block-size", "32", "--symmetric", "--bits", "5", "--keep", "w_down"]
    assert main(["apply", "-i", str(path), "-o", str(out), "-t", "int4", *words]) == 0
    graph = onnx.load(out / "gemm.onnx", load_external_data=False).graph
    (product,) = (node for node in graph.node if node.op_type == "MatMulNBits")
    assert {a.name: a.i for a in product.attribute}["block_size"] == 32
    assert len(product.input) == 3  # no zero points
    assert "w_down" in {t.name for t in graph.initializer}


def test_int4_takes_tied_tables_and_weights_on_the_left(tmp_path, capsys):
    """What is quantized, what is not and why; a tied table is stored once."""
    path, out = write(MIXED, tmp_path / "mixed.onnx"), tmp_path / "out"
    assert main(["apply", "-i", str(path), "-o", str(out), "-t", "int4"]) == 0
    told = capsys.readouterr().err
    assert "in float: 0.0 MB, Gather needs a table that the policy quantizes (w_places)" in told
    assert "in float: 0.0 MB, Conv has no quantized form here (w_kernel)" in told
    assert told.count("in float: ") == 2
    model = onnx.load(out / "mixed.onnx", load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    assert (ops.count("MatMulNBits"), ops.count("GatherBlockQuantized")) == (3, 1)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    same = ("location", "offset", "length")
    codes = [places[f"w_table.packed{end}"] for end in ("", ".rows")]
    assert [codes[0][key] for key in same] == [codes[1][key] for key in same]
    record = json.loads((out / "quantization.json").read_text(encoding="utf-8"))["mixed.onnx"]
    assert {row["name"] for row in record["weights"]} == {"w_left", "w_right"}
    assert [row["name"] for row in record["rounded"]] == ["w_table"]
    assert {name for group in record["float"] for name in group["weights"]} == {
        "w_places", "w_kernel",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 7)):
        feeds = {"ids": rng.integers(0, 300, shape)}
        want, got = run(path, feeds), run(out / "mixed.onnx", feeds)
        assert np.abs(got - want).max() < 0.15 * np.abs(want).max()


def test_nothing_in_float_without_quantizing(graph, tmp_path, capsys):
    """Only -t int4 speaks of it."""
    assert main(["apply", "-i", str(graph), "-o", str(tmp_path / "out")]) == 0
    assert "in float" not in capsys.readouterr().err
    assert not (tmp_path / "out" / "quantization.json").exists()


FUNCTION = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[batch,sequence,64] x, float[64,64] w_up) => (float[batch,sequence,64] y) {
  up = MatMul(x, w_up)
  y = local.swish(up)
}
<domain: "local", opset_import: ["": 17]>
swish (v) => (o) {
  s = Sigmoid(v)
  o = Mul(v, s)
}"""
BRANCH = """<ir_version: 10, opset_import: ["": 17]>
g (bool flag, float[batch,sequence,64] x, float[64,64] w_up) => (float[batch,sequence,64] y) {
  y = If (flag) <then_branch = yes () => (float[batch,sequence,64] a) {
    two = Constant<value = float {2.0}>()
    up = MatMul(x, w_up)
    s = Sigmoid(up)
    act = Mul(up, s)
    a = Mul(act, two)
  }, else_branch = no () => (float[batch,sequence,64] b) { b = Identity(x) }>
}"""


def test_local_functions(tmp_path):
    """They are inlined before any pass looks."""
    path, out = write(FUNCTION, tmp_path / "function.onnx"), tmp_path / "out"
    assert main(["apply", "-i", str(path), "-o", str(out)]) == 0
    model = onnx.load(out / "function.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "QuickGelu"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)}
    np.testing.assert_allclose(run(out / "function.onnx", feeds), run(path, feeds), atol=1e-5)


@pytest.mark.parametrize(("words", "most"), [
    ([], 1e-6), (["-t", "fp16", "-e", "cuda"], 1e-2), (["-t", "int4"], 0.2),
    (["-t", "int4", "-e", "cuda"], 0.2),
])  # fmt: skip
def test_branches(tmp_path, words, most):
    """What a branch uses is imported on the model, and its types fit in every precision."""
    path, out = write(BRANCH, tmp_path / "branch.onnx"), tmp_path / "out"
    assert main(["apply", "-i", str(path), "-o", str(out), *words]) == 0
    model = onnx.load(out / "branch.onnx")
    assert "com.microsoft" in {entry.domain for entry in model.opset_import}
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    for flag in (True, False):
        feeds = {"flag": np.array(flag), "x": x}
        want, got = run(path, feeds), run(out / "branch.onnx", feeds)
        assert np.abs(got - want).max() <= most * np.abs(want).max()


CROSS = """<ir_version: 10, opset_import: ["": 23]>
g (float[batch,sequence,32] h, float[batch,frames,32] heard, float[32,32] w_q, float[32,32] w_k,
   float[32,32] w_v) => (float[batch,sequence,32] y)
<int64[4] split = {0, 0, 4, 8}, int64[3] merged = {0, 0, 32}> {
{HEADS}
  k = Transpose<perm = [0, 2, 1, 3]>(k1)
  a = Attention(q, k, v)
  back = Transpose<perm = [0, 2, 1, 3]>(a)
  y = Reshape(back, merged)
}""".replace("{HEADS}", HEADS)


@pytest.mark.parametrize("recipe", ["decoder", "any"])
def test_cross_attention(tmp_path, recipe):
    """Attention to what an encoder made has no cache: one node, in a decoder too."""
    path, out = write(CROSS, tmp_path / "cross.onnx"), tmp_path / "out"
    assert main(["apply", "-i", str(path), "-o", str(out), "--recipe", recipe]) == 0
    model = onnx.load(out / "cross.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("MultiHeadAttention") == 1
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 5), (2, 3, 7)):
        b, s, f = shape
        feeds = {
            "h": rng.standard_normal((b, s, 32)).astype(np.float32),
            "heard": rng.standard_normal((b, f, 32)).astype(np.float32),
        }
        np.testing.assert_allclose(run(out / "cross.onnx", feeds), run(path, feeds), atol=1e-5)
