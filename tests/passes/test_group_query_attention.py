"""Causal attention over a cache as one node."""

import numpy as np
import pytest

from surgery.passes.attention.group_query_attention import GroupQueryAttention

HEADS, KV, WIDTH = 4, 2, 16
BEFORE = """
g (float[batch,sequence,64] q, float[batch,sequence,32] k, float[batch,sequence,32] v,
   int64[batch,total] attention_mask, float[batch,2,past,16] past_key,
   float[batch,2,past,16] past_value)
=> (float[batch,sequence,64] y, float[batch,2,total,16] present_key,
    float[batch,2,total,16] present_value)
<int64[4] q_heads = {0, 0, 4, 16}, int64[4] kv_heads = {0, 0, 2, 16}, int64[3] merged = {0, 0, 64},
 int64 nil = {0}, int64 step = {1}, int64[3] a012 = {0, 1, 2}, int64[3] a013 = {0, 1, 3},
 int64[2] a12 = {1, 2}> {
  split = Reshape(q, q_heads)
  query = Transpose<perm = [0, 2, 1, 3]>(split)
  split_k = Reshape(k, kv_heads)
  key = Transpose<perm = [0, 2, 1, 3]>(split_k)
  split_v = Reshape(v, kv_heads)
  value = Transpose<perm = [0, 2, 1, 3]>(split_v)
  present_key = Concat<axis = 2>(past_key, key)
  present_value = Concat<axis = 2>(past_value, value)
  valid = Cast<to = 9>(attention_mask)
  wide = Unsqueeze(valid, a12)
  length = Shape<start = 1, end = 2>(q)
  s = Squeeze(length)
  before = Shape<start = 2, end = 3>(past_key)
  p = Squeeze(before)
  t = Add(s, p)
  new = Range(nil, s, step)
  row = Add(new, p)
  column = Range(nil, t, step)
  rows = Unsqueeze(row, a013)
  columns = Unsqueeze(column, a012)
  causal = LessOrEqual(columns, rows)
  mask = And(causal, wide)
  scores = Attention<scale = 0.3, is_causal = 0>(query, present_key, present_value, mask)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, merged)
}
"""
ALL = "mask = And(causal, wide)"
WINDOW = """edge = Sub(rows, window)
  inside = Greater(columns, edge)
  near = And(causal, inside)
  mask = And(near, wide)"""
MISSES = {
    "no mask": ("present_value, mask)", "present_value)", "a mask"),
    "strictly causal": ("LessOrEqual(columns", "Less(columns", "another mask"),
    "not causal": ("mask = And(causal, wide)", "mask = Expand(wide, full)", "another mask"),
    "padding turned": ("mask = And(causal, wide)",
                       "off = Not(wide)\n  mask = And(causal, off)", "another mask"),
    "a mask of activations": ("mask = And(causal, wide)", "hot = Greater(back0, nilf)\n  m0 = "
                              "And(causal, hot)\n  mask = And(m0, wide)", "another mask"),
    "added numbers": ("present_value, mask)", "present_value, floats)", "another mask"),
    "causal twice": ("is_causal = 0", "is_causal = 1", "no causality of its own"),
    "new before past": ("(past_key, key)", "(key, past_key)", "a past that is a graph input"),
    "three parts": ("(past_key, key)", "(past_key, key, key)", "past and new, nothing else"),
    "no past": ("present_key = Concat<axis = 2>(past_key, key)", "present_key = Neg(key)", ""),
    "joined along heads": ("present_key = Concat<axis = 2>", "present_key = Concat<axis = 1>",
                           "joined along axis 2"),
    "past computed": ("(past_value, value)", "(other_past, value)", "a past that is a graph input"),
    "heads not moved": ("query = Transpose<perm = [0, 2, 1, 3]>", "query = Identity",
                        "from Transpose"),
    "scores read twice": ("y = Reshape(back, merged)", "m0 = ReduceMax<keepdims = 0>(scores)\n  "
                          "back1 = Add(back, m0)\n  y = Reshape(back1, merged)", "Transpose alone"),
}  # fmt: skip


def make():
    return GroupQueryAttention()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "Expand" in new:
        size = "  ts = Concat<axis = 0>(one, one, length, whole)\n"
        text = text.replace("  mask =", f"{size}  mask =")
        text = text.replace("full", "ts").replace("int64 nil", "int64[1] one = {1}, int64 nil")
        text = text.replace("  ts =", "  whole = Shape<start = 1, end = 2>(attention_mask)\n  ts =")
    if "back0" in new:
        text = text.replace("  hot =", "  back0 = ReduceMax<keepdims = 0>(q)\n  hot =")
        text = text.replace("int64 nil", "float nilf = {0}, int64 nil")
    if "floats" in new:
        text = text.replace("  scores =", "  floats = Cast<to = 1>(mask)\n  scores =")
    if "other_past" in new:
        text = text.replace("  present_v", "  other_past = Abs(past_value)\n  present_v", 1)
    if "axis = 1" in new:
        text = text.replace("2,total,16] present_key", "A,C,16] present_key")
    if "key, key)" in new or "Neg(key)" in new or new.startswith("query"):
        text = text.replace("total,16] present_key", "A,16] present_key")
    untouched(make(), build(text), reason)


def feeds(rng, b, s, p, mask=None):
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "q": normal(b, s, HEADS * WIDTH),
        "k": normal(b, s, KV * WIDTH),
        "v": normal(b, s, KV * WIDTH),
        "attention_mask": np.ones((b, p + s), np.int64) if mask is None else mask,
        "past_key": normal(b, KV, p, WIDTH),
        "past_value": normal(b, KV, p, WIDTH),
    }


SHAPES = [(1, 1, 0), (1, 5, 0), (3, 4, 0), (3, 1, 9), (1, 6, 3), (1, 1, 40), (1, 33, 0)]


def test_numbers(build, same_numbers, rng):
    inputs = [feeds(rng, *shape) for shape in SHAPES]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)


def test_axes_with_names_of_their_own(build, same_numbers, rng):
    """An exporter may name equal axes differently."""
    text = BEFORE.replace("int64[batch,total] attention_mask", "int64[rows,all] attention_mask")
    text = text.replace("float[batch,2,past,16] past_value", "float[rows2,2,past2,16] past_value")
    text = text.replace("end = 3>(past_key)", "end = 3>(past_value)")
    inputs = [feeds(rng, *shape) for shape in SHAPES]
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("width", [128, 256])
def test_wide_heads(build, same_numbers, rng, width):
    """Head sizes of large models; only the sizes of the graph differ."""
    text = BEFORE.replace("past,16]", f"past,{width}]").replace("total,16]", f"total,{width}]")
    text = text.replace("4, 16}", f"4, {width}}}").replace("2, 16}", f"2, {width}}}")
    text = text.replace("0, 64}", f"0, {4 * width}}}")
    text = text.replace("sequence,64]", f"sequence,{4 * width}]")
    text = text.replace("sequence,32]", f"sequence,{2 * width}]")
    model = build(text.replace("scale = 0.3", "scale = 0.05"))
    cases = [wide_feeds(rng, width, *shape) for shape in ((1, 5, 0), (1, 1, 7), (2, 3, 0))]
    same_numbers(make(), model, cases, rtol=2e-5, atol=1e-5)


def wide_feeds(rng, width, b, s, p):
    shapes = {
        "q": (b, s, HEADS * width),
        "k": (b, s, KV * width),
        "v": (b, s, KV * width),
        "past_key": (b, KV, p, width),
        "past_value": (b, KV, p, width),
    }
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"attention_mask": np.ones((b, p + s), np.int64)}


def test_right_padding(build, run, rng):
    """A prompt shorter than its row: what counts is equal, and the padding is never read."""
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.int64)
    given = feeds(rng, 3, 5, 0, mask)
    model = build(BEFORE)
    want = run(model, given)
    make()(model)
    got = run(model, given)
    for row, length in enumerate(mask.sum(1)):
        np.testing.assert_allclose(
            got["y"][row, :length], want["y"][row, :length], rtol=2e-5, atol=2e-6
        )
        for name in ("present_key", "present_value"):
            assert np.array_equal(got[name][row, :, :length], want[name][row, :, :length])


def test_no_padding(build, same_numbers, rng):
    """A mask that is causal alone: no input hides a key, lengths are those of the shapes."""
    text = BEFORE.replace(ALL, "mask = Identity(causal)")
    text = text.replace("   int64[batch,total] attention_mask,", "  ")
    text = text.replace(
        "  valid = Cast<to = 9>(attention_mask)\n  wide = Unsqueeze(valid, a12)\n", ""
    )
    given = [feeds(rng, *shape) for shape in SHAPES]
    for inputs in given:
        del inputs["attention_mask"]
    same_numbers(make(), build(text), given, rtol=2e-5, atol=2e-6)


def test_cache_is_bit_equal(build, run, rng):
    model = build(BEFORE)
    given = feeds(rng, 1, 3, 4)
    want = run(model, given)
    make()(model)
    got = run(model, given)
    for name in ("present_key", "present_value"):
        assert np.array_equal(got[name], want[name])


def test_softcap(build, same_numbers, rng):
    text = BEFORE.replace("is_causal = 0", "is_causal = 0, softcap = 0.5")
    same_numbers(make(), build(text), [feeds(rng, *s) for s in SHAPES], rtol=2e-5, atol=2e-6)


def test_default_scale(build, same_numbers, rng):
    """An attention without the attribute scales by the root of its head width."""
    text = BEFORE.replace("scale = 0.3, ", "")
    same_numbers(make(), build(text), [feeds(rng, 1, 3, 4)], rtol=2e-5, atol=2e-6)


WINDOWS = {
    "a constant": WINDOW,
    "a node": "window = Constant<value = int64 {8}>()\n  " + WINDOW,
    "32 bits": WINDOW.replace("edge = Sub(rows, window)", "w32 = Cast<to = 6>(rows)\n  c32 = "
                              "Cast<to = 6>(columns)\n  edge = Sub(w32, window32)")
                     .replace("Greater(columns", "Greater(c32"),
}  # fmt: skip


@pytest.mark.parametrize("new", WINDOWS.values(), ids=WINDOWS)
def test_window(build, same_numbers, rng, new):
    """A window is read off the mask; prompts and pasts shorter and longer than it."""
    text = BEFORE.replace(ALL, new)
    if "Constant" not in new:
        text = text.replace("int64 nil", "int64 window = {8}, int32 window32 = {8}, int64 nil")
    model, work = build(text), make()
    same_numbers(work, model, [feeds(rng, *shape) for shape in SHAPES], rtol=2e-5, atol=2e-6)
    (fused,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert fused.attributes["local_window_size"].as_int() == 8


@pytest.mark.parametrize("new", [
    WINDOW.replace("Greater(columns", "GreaterOrEqual(columns").replace("Sub(rows", "Mul(rows"),
    WINDOW.replace("And(near, wide)", "And(near, here)").replace(
        "edge =", "half = Div(total, window)\n  here = Less(columns, half)\n  edge ="),
])  # fmt: skip
def test_no_window(build, untouched, new):
    """What hides positions in another way than by their distance."""
    text = BEFORE.replace(ALL, new).replace("int64 nil", "int64 window = {2}, int64 nil")
    text = text.replace("  column =", "  total = Add(t, step)\n  column =")
    untouched(make(), build(text), "another mask")


def narrowed(width, values):
    """The graph with heads, and values, of other widths."""
    text = BEFORE.replace("{0, 0, 4, 16}", f"{{0, 0, 4, {width}}}")
    text = text.replace("kv_heads = {0, 0, 2, 16}", f"kv_heads = {{0, 0, 2, {width}}}")
    of_values = f"int64[4] v_heads = {{0, 0, 2, {values}}}, int64[3] merged"
    text = text.replace("int64[3] merged", of_values)
    text = text.replace("split_v = Reshape(v, kv_heads)", "split_v = Reshape(v, v_heads)")
    text = text.replace("merged = {0, 0, 64}", f"merged = {{0, 0, {4 * values}}}")
    text = text.replace("sequence,64] q", f"sequence,{4 * width}] q")
    text = text.replace("sequence,32] k", f"sequence,{2 * width}] k")
    text = text.replace("sequence,32] v", f"sequence,{2 * values}] v")
    text = text.replace("sequence,64] y", f"sequence,{4 * values}] y")
    for side, size in (("past", width), ("total", width)):
        text = text.replace(
            f"{side},16] {'past' if side == 'past' else 'present'}_key",
            f"{side},{size}] {'past' if side == 'past' else 'present'}_key",
        )
    text = text.replace("past,16] past_value", f"past,{values}] past_value")
    return text.replace("total,16] present_value", f"total,{values}] present_value")


@pytest.mark.parametrize(("width", "values", "reason"), [
    (100, 100, "a multiple of 8"), (4, 4, "a multiple of 8"), (16, 8, "values as wide as keys"),
])  # fmt: skip
def test_refused_widths(build, untouched, width, values, reason):
    """Widths that onnxruntime's op refuses: the graph runs as it is, so it stays."""
    untouched(make(), build(narrowed(width, values)), reason)


def test_left_padding_is_refused_aloud(build, run, rng):
    """Rows padded on the left raise an error; those padded on the right compute what they did."""
    model = build(BEFORE)
    right = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int64)
    want = run(model, feeds(np.random.default_rng(1), 2, 5, 0, right))
    GroupQueryAttention(refuse_left=True)(model)
    got = run(model, feeds(np.random.default_rng(1), 2, 5, 0, right))
    for row, length in enumerate(right.sum(1)):
        np.testing.assert_allclose(
            got["y"][row, :length], want["y"][row, :length], rtol=2e-5, atol=2e-6
        )
    for left in ([0, 1, 1, 1, 1], [0, 0, 0, 0, 1]):
        with pytest.raises(Exception, match="seqlens_k"):
            run(model, feeds(rng, 2, 5, 0, np.array([[1] * 5, left], np.int64)))
    with pytest.raises(Exception, match="seqlens_k"):
        run(model, feeds(rng, 2, 1, 4, np.array([[1] * 5, [0, 0, 1, 1, 1]], np.int64)))
