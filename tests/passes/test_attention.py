"""Attention written out, as one node."""

import numpy as np
import pytest

from surgery.passes.attention.attention import Attention

BEFORE = """
g (float[B,4,S,8] q, float[B,2,T,8] k, float[B,2,T,8] v, bool[B,1,S,T] seen)
=> (float[B,4,S,8] y)
<float scale = {0.35}, float nil = {0}, float low = {-1e38}, int64[1] axis = {2},
 int64[5] twice = {1, 1, 2, 1, 1}, int64[4] flat = {0, 4, -1, 8},
 float[B,4,T,8] key, float[B,4,T,8] value> {
  lifted_k = Unsqueeze(k, axis)
  spread_k = Expand(lifted_k, twice)
  key = Reshape(spread_k, flat)
  lifted_v = Unsqueeze(v, axis)
  spread_v = Expand(lifted_v, twice)
  value = Reshape(spread_v, flat)
  turned = Transpose<perm = [0, 1, 3, 2]>(key)
  product = MatMul(q, turned)
  scores = Mul(product, scale)
  bias = Where(seen, nil, low)
  masked = Add(scores, bias)
  weights = Softmax<axis = -1>(masked)
  y = MatMul(weights, value)
}
"""
MISSES = [
    ("Softmax<axis = -1>", "Softmax<axis = 2>", ""),
    ("MatMul(weights, value)", "MatMul(value, weights)", "weights times values"),
    ("scores = Mul(product, scale)", "scores = Mul(product, product)", "from MatMul"),
    ("y = MatMul(weights, value)", "w = MatMul(weights, value)\n  s = ReduceSum<keepdims = 0>"
     "(weights)\n  y = Mul(w, s)", "read by one MatMul alone"),
]  # fmt: skip


def make():
    return Attention()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "value, weights" in new:
        text = text.replace("float[B,4,S,8] y", "float[U,V,W,X] y")
        text = text.replace("bool[B,1,S,T]", "bool[B,1,S,Z]")
    untouched(make(), build(text), reason)


def test_older_opset(build, untouched):
    text = '<ir_version: 10, opset_import: ["": 22, "com.microsoft": 1]>\n' + BEFORE
    untouched(make(), build(text), "opset 23")


def inputs(rng):
    for b, s, t in ((1, 1, 1), (3, 5, 5), (2, 1, 9), (1, 6, 11)):
        seen = rng.random((b, 1, s, t)) < 0.6
        seen[..., 0] = True
        yield {
            "q": rng.standard_normal((b, 4, s, 8)).astype(np.float32),
            **{n: rng.standard_normal((b, 2, t, 8)).astype(np.float32) for n in "kv"},
            "seen": seen,
            "added": np.where(seen, rng.standard_normal(seen.shape), -1e4).astype(np.float32),
        }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("scores = Mul(product, scale)", "scores = Div(product, scale)"),
        ("bias = Where(seen, nil, low)", "bias = Neg(minus)"),
        ("masked = Add(scores, bias)", "masked = Add(bias, scores)"),
        ("masked = Add(scores, bias)", "masked = Mul(scores, scale)"),
    ],
)
def test_numbers(build, same_numbers, rng, old, new):
    """Masks of bool and of numbers, none, and other spellings of the scale."""
    text = BEFORE.replace(old, new) if old else BEFORE
    if "minus" in new:
        text = text.replace("bool[B,1,S,T] seen", "float[B,1,S,T] added")
        text = text.replace("  bias =", "  minus = Neg(added)\n  bias =")
    if "Mul(scores, scale)" in new:
        text = text.replace(", bool[B,1,S,T] seen", "")
        text = text.replace("  bias = Where(seen, nil, low)\n", "")
        text = text.replace("masked = Mul(scores, scale)", "masked = Mul(product, scale)")
        text = text.replace("  scores = Mul(product, scale)\n", "")
    wanted = [{k: v for k, v in feeds.items() if f"] {k}" in text} for feeds in inputs(rng)]
    same_numbers(make(), build(text), wanted, rtol=2e-5, atol=2e-6)


def test_heads_repeated_in_another_order(build, same_numbers, rng):
    """Heads tiled (0, 1, 0, 1) are not heads repeated (0, 0, 1, 1): the tiling stays."""
    text = BEFORE.replace("axis = {2}", "axis = {1}").replace("{1, 1, 2, 1, 1}", "{1, 2, 1, 1, 1}")
    wanted = [{k: v for k, v in feeds.items() if k != "added"} for feeds in inputs(rng)]
    model = build(text)
    same_numbers(make(), model, wanted, rtol=2e-5, atol=2e-6)
    assert "Expand" in [node.op_type for node in model.graph]


def test_only_keys_repeated(build, same_numbers, rng):
    """Values with a head each: then the keys stay repeated too."""
    text = BEFORE.replace("float[B,2,T,8] v", "float[B,4,T,8] v").replace(
        "(weights, value)", "(weights, v)"
    )
    wanted = [
        {**{k: x for k, x in feeds.items() if k != "added"}, "v": np.repeat(feeds["v"], 2, 1)}
        for feeds in inputs(rng)
    ]
    same_numbers(make(), build(text), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("mask", ["bool[B,1,1,T] seen", "float[B,1,1,T] added", "bool[1,T] seen"])
def test_one_row_for_all_queries(build, same_numbers, rng, mask):
    """A mask of padding is spread over the queries, as onnxruntime's op wants it."""
    text = BEFORE.replace("bool[B,1,S,T] seen", mask)
    if "added" in mask:
        text = text.replace("bias = Where(seen, nil, low)", "bias = Neg(minus)")
        text = text.replace("  bias =", "  minus = Neg(added)\n  bias =")
    wanted = []
    for feeds in inputs(rng):
        row = {k: v[:, :, :1] if k in ("seen", "added") else v for k, v in feeds.items()}
        row["seen"] = row["seen"][0, 0] if "[1,T]" in mask else row["seen"]
        wanted.append({k: v for k, v in row.items() if f"] {k}" in text})
    model = build(text)
    same_numbers(make(), model, wanted, rtol=2e-5, atol=2e-6)
    assert [node.op_type for node in model.graph].count("Expand") == 1


GUARDED = BEFORE.replace(
    "y = MatMul(weights, value)",
    """empty = IsNaN(weights)
  kept = Where(empty, nil, weights)
  y = MatMul(kept, value)""",
)


def test_guard(build):
    """torch turns rows of NaN into zeros; the op does so by itself where the mask is bool."""
    work = make()
    work(build(GUARDED))
    assert work.count == 1


def test_guard_beside_numbers(build, untouched):
    text = GUARDED.replace("bool[B,1,S,T] seen", "float[B,1,S,T] bias")
    text = text.replace("  bias = Where(seen, nil, low)\n", "")
    untouched(make(), build(text), "a mask of bool beside a guard")


def test_keys_turned_otherwise(build, same_numbers, rng):
    """Keys that come turned are turned back."""
    text = BEFORE.replace("float[B,2,T,8] k,", "float[B,4,8,T] k,")
    text = text.replace("float[B,4,T,8] key, ", "")
    text = text.replace("  turned = Transpose<perm = [0, 1, 3, 2]>(key)\n", "")
    for line in (
        "  lifted_k = Unsqueeze(k, axis)\n",
        "  spread_k = Expand(lifted_k, twice)\n",
        "  key = Reshape(spread_k, flat)\n",
    ):
        text = text.replace(line, "")
    text = text.replace("MatMul(q, turned)", "MatMul(q, k)")
    text = text.replace("float[B,2,T,8] v", "float[B,4,T,8] v").replace("{1, 1, 2, 1, 1}", "{1}")
    text = text.replace("int64[5] twice", "int64[1] twice")
    cases = [
        {
            "q": rng.standard_normal((b, 4, s, 8)).astype(np.float32),
            "k": rng.standard_normal((b, 4, 8, t)).astype(np.float32),
            "v": rng.standard_normal((b, 4, t, 8)).astype(np.float32),
            "seen": rng.random((b, 1, s, t)) < 2,
        }
        for b, s, t in ((1, 1, 3), (2, 4, 5), (3, 2, 7))
    ]
    same_numbers(make(), build(text), cases, rtol=2e-5, atol=1e-6)
