"""Attention on rows, with a mask and without."""

import numpy as np
import pytest

from surgery.passes.attention.multi_head_attention import MultiHeadAttention
from surgery.rewrite import view

BEFORE = """
g (float[B,S,32] q, float[B,T,32] k, float[B,T,32] v) => (float[B,S,32] y)
<int64[4] heads = {0, 0, 2, 16}, int64[3] flat = {0, 0, 32}, bool[1,1,2,2] shown = {1, 1, 1, 1},
 bool[1,1,2,2] hidden = {1, 1, 0, 1}, float[1,1,2,2] zero = {0, 0, 0, 0}> {
  split_q = Reshape(q, heads)
  query = Transpose<perm = [0, 2, 1, 3]>(split_q)
  split_k = Reshape(k, heads)
  key = Transpose<perm = [0, 2, 1, 3]>(split_k)
  split_v = Reshape(v, heads)
  value = Transpose<perm = [0, 2, 1, 3]>(split_v)
  scores = Attention<scale = 0.3, is_causal = 0>(query, key, value)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, flat)
}
"""
MISSES = [
    ("query, key, value)", "query, key, value, hidden)", "a mask that hides nothing"),
    ("query, key, value)", "query, key, value, given)", "one of [B,2,S,T]"),
    ("query, key, value)", "query, key, value, ints)", "bool or float32"),
    ("query, key, value)", "query, key, value, row)", "one of [B,2,S,T]"),
    ("is_causal = 0", "is_causal = 1", "neither causal nor capped"),
    ("is_causal = 0", "softcap = 3.0", "neither causal nor capped"),
    ("Reshape(k, heads)", "Reshape(k, one)", "2 key heads"),
    ("query = Transpose<perm = [0, 2, 1, 3]>(split_q)", "query = Abs(split_q)", "from Transpose"),
]


def make():
    return MultiHeadAttention()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "given" in new:
        text = text.replace("k, float", "k, bool[B,1,T,S] given, float", 1)
    if "row)" in new:
        text = text.replace("k, float", "k, bool[B,1,1,T] row, float", 1)
    if "ints" in new:
        text = text.replace("k, float", "k, uint8[B,1,S,T] ints, float", 1)
    if "one)" in new:
        text = text.replace("float[B,T,32] k", "float[B,T,16] k").replace("(v, heads)", "(v, one)")
        text = text.replace("float[B,T,32] v", "float[B,T,16] v")
        text = text.replace("<int64[4] heads", "<int64[4] one = {0, 0, 1, 16}, int64[4] heads")
    if "Abs" in new:
        text = text.replace("float[B,S,32] y", "float[U,V,W] y")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("mask", ["", ", shown", ", zero"])
def test_numbers(build, same_numbers, rng, mask):
    """A constant mask that hides nothing is left out."""
    text = BEFORE.replace("query, key, value)", f"query, key, value{mask})")
    shapes = [(1, 2, 2), (3, 2, 2)] if mask else [(1, 1, 1), (3, 5, 5), (2, 1, 9), (1, 33, 33)]
    inputs = [
        {
            "q": rng.standard_normal((b, s, 32)).astype(np.float32),
            **{n: rng.standard_normal((b, t, 32)).astype(np.float32) for n in "kv"},
        }
        for b, s, t in shapes
    ]
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)


MASKS = ["bool[B,1,S,T]", "bool[1,1,S,T]", "float[B,2,S,T]"]


def masked(kind):
    """The graph with a mask from outside."""
    text = BEFORE.replace("query, key, value)", "query, key, value, mask)")
    return text.replace("k, float", f"k, {kind} mask, float", 1)


def test_golden_masks(build, golden_text):
    """Numbers to be added, a row for each query."""
    found = []
    for kind in MASKS[::2]:
        model = build(masked(kind))
        make()(model)
        found.append(f"== {kind}\n{view.text(model)}")
    golden_text("multi_head_attention_mask", "\n".join(found))


@pytest.mark.parametrize("kind", MASKS)
def test_numbers_with_mask(build, same_numbers, rng, kind):
    """A mask that hides some keys of each query."""
    inputs = []
    for b, s, t in ((1, 2, 2), (3, 5, 5), (2, 1, 9), (1, 33, 33)):
        named = {"B": b, "S": s, "T": t}
        shape = [named.get(d) or int(d) for d in kind.partition("[")[2][:-1].split(",")]
        mask = rng.standard_normal(shape) < 0.5
        mask[..., 0] = True
        inputs.append(
            {
                "mask": mask if kind.startswith("bool") else mask.astype(np.float32),
                "q": rng.standard_normal((b, s, 32)).astype(np.float32),
                **{n: rng.standard_normal((b, t, 32)).astype(np.float32) for n in "kv"},
            }
        )
    same_numbers(make(), build(masked(kind)), inputs, rtol=2e-5, atol=2e-6)


def test_nothing_to_see(build, run, rng):
    """A query without any key gets the mean of all values; onnxruntime's `Attention` gives 0."""
    model = build(masked(MASKS[0]))
    feeds = {n: rng.standard_normal((1, 3, 32)).astype(np.float32) for n in "qkv"}
    feeds["mask"] = np.array([[[[1, 0, 0], [0, 0, 0], [1, 1, 1]]]], bool)
    want = run(model, feeds)["y"]
    make()(model)
    got = run(model, feeds)["y"]
    assert not want[0, 1].any()
    np.testing.assert_allclose(got[0, 1], feeds["v"][0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(got[0, ::2], want[0, ::2], rtol=2e-5, atol=2e-6)


PADDED = """
g (float[B,S,64] x, int64[B,S] attention_mask) => (float[B,S,64] y)
<int64[4] heads = {0, 0, 4, 16}, int64[3] merged = {0, 0, 64}, int64[2] a12 = {1, 2},
 float nil = {0}, float low = {-3.4e38}> {
  split = Reshape(x, heads)
  q = Transpose<perm = [0, 2, 1, 3]>(split)
  valid = Cast<to = 9>(attention_mask)
  wide = Unsqueeze(valid, a12)
  mask = Where(wide, nil, low)
  scores = Attention(q, q, q, mask)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, merged)
}
"""


def padded(text):
    """The graph with a row of the mask for each query."""
    grown = "rows = Shape<start = 1, end = 2>(x)\n  size = Concat<axis = 0>(one, one, rows, one)\n"
    text = text.replace("  mask = Where", f"  {grown}  all = Expand(wide, size)\n  mask = Where")
    text = text.replace("float nil", "int64[1] one = {1}, float nil")
    return text.replace("(wide, nil", "(all, nil")


def padded_feeds(rng):
    for b, s in ((1, 3), (2, 5), (4, 9)):
        mask = (np.arange(s) < rng.integers(1, s + 1, (b, 1))).astype(np.int64)
        yield {"x": rng.standard_normal((b, s, 64)).astype(np.float32), "attention_mask": mask}


def test_padding(build, same_numbers, rng):
    """A mask of keys alone becomes the graph's own padding mask."""
    model = build(padded(PADDED))
    same_numbers(make(), model, padded_feeds(rng), rtol=2e-5, atol=2e-6)
    (node,) = [n for n in model.graph if n.op_type == "MultiHeadAttention"]
    assert node.inputs[4].dtype.name == "INT32" and len(node.inputs) == 5
    assert not any(n.op_type == "Where" for n in model.graph)


def test_padding_of_axes_with_names_of_their_own(build, same_numbers, rng):
    """An exporter may name equal axes differently; the rows of the mask come from another input."""
    text = padded(PADDED).replace("int64[B,S] attention_mask", "int64[C,T] attention_mask")
    text = text.replace("Concat<axis = 0>(one, one", "Concat<axis = 0>(batch, one")
    text = text.replace("  rows =", "  batch = Shape<start = 0, end = 1>(x)\n  rows =")
    model = build(text)
    same_numbers(make(), model, padded_feeds(rng), rtol=2e-5, atol=2e-6)
    (node,) = [n for n in model.graph if n.op_type == "MultiHeadAttention"]
    assert len(node.inputs) == 5


def test_padding_turned(build):
    """One that hides what the input says to see stays as it is."""
    text = padded(PADDED).replace("(all, nil, low)", "(all, low, nil)")
    model = build(text)
    make()(model)
    nodes = [n for n in model.graph if n.op_type == "MultiHeadAttention"]
    assert all(len(n.inputs) == 6 and n.inputs[4] is None for n in nodes)
