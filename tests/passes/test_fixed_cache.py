"""Attention over a cache of fixed length as one node."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.match.fixed_cache import in_place
from surgery.passes.attention.fixed_cache import FixedCache
from surgery.passes.attention.group_query_attention import GroupQueryAttention

LENGTH = 12
BEFORE = """
g (float[batch,sequence,64] q, float[batch,sequence,32] k, float[batch,sequence,32] v,
   int64[batch,sequence] position_ids, int64[batch,12] attention_mask,
   float[batch,2,12,16] past_key, float[batch,2,12,16] past_value)
=> (float[batch,sequence,64] y, float[batch,2,12,16] present_key,
    float[batch,2,12,16] present_value)
<int64[4] q_heads = {0, 0, 4, 16}, int64[4] kv_heads = {0, 0, 2, 16}, int64[3] merged = {0, 0, 64},
 int64 nil = {0}, int64 step = {1}, int64[1] a1 = {1}, int64 eleven = {11},
 int64[3] a013 = {0, 1, 3},
 int64[2] a12 = {1, 2}, int64[1,1,1,12] columns = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> {
  split = Reshape(q, q_heads)
  query = Transpose<perm = [0, 2, 1, 3]>(split)
  split_k = Reshape(k, kv_heads)
  key = Transpose<perm = [0, 2, 1, 3]>(split_k)
  split_v = Reshape(v, kv_heads)
  of_row = Gather(position_ids, nil)
  first = Gather(of_row, nil)
  length = Shape<start = 1, end = 2>(q)
  s = Squeeze(length)
  steps = Range(nil, s, step)
  place = Add(steps, first)
  places = Unsqueeze(place, a1)
  front_key = Transpose<perm = [2, 0, 1, 3]>(past_key)
  new_key = Transpose<perm = [2, 0, 1, 3]>(key)
  whole_key = ScatterND(front_key, places, new_key)
  present_key = Transpose<perm = [1, 2, 0, 3]>(whole_key)
  front_value = Transpose<perm = [2, 0, 1, 3]>(past_value)
  new_value = Transpose<perm = [1, 0, 2, 3]>(split_v)
  whole_value = ScatterND(front_value, places, new_value)
  present_value = Transpose<perm = [1, 2, 0, 3]>(whole_value)
  rows = Unsqueeze(place, a013)
  causal = LessOrEqual(columns, rows)
  valid = Cast<to = 9>(attention_mask)
  wide = Unsqueeze(valid, a12)
  mask = And(causal, wide)
  scores = Attention<scale = 0.3, is_causal = 0>(query, present_key, present_value, mask)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, merged)
}
"""
MASKED = "mask = And(causal, wide)"
CHANGES = {
    "no mask": ("present_value, mask)", "present_value)", "a mask"),
    "strictly causal": ("LessOrEqual(columns", "Less(columns", "another mask at batch 1"),
    "not causal": (MASKED, "mask = Or(causal, wide)", "another mask at batch 1"),
    "a window": (MASKED, "edge = Sub(rows, eleven)\n  near = Greater(columns, edge)\n  "
                 "seen = And(causal, near)\n  mask = And(seen, wide)", "behind 11"),
    "mask from outside": (MASKED, "mask = Identity(seen)", "mask"),
    "from the end": ("place = Add(steps, first)", "place = Sub(first, steps)", "other positions"),
    "sums": ("whole_key = ScatterND", 'whole_key = ScatterND<reduction = "add">',
             "numbers that replace others"),
    "two places": ("ScatterND(front_value, places,", "ScatterND(front_value, others,",
                   "keys and values at the same positions"),
    "elements": ("present_key = Transpose<perm = [1, 2, 0, 3]>(whole_key)",
                 "present_key = ScatterElements<axis = 2>(past_key, everywhere, key)",
                 "positions written by ScatterND; found ScatterElements"),
    "causal twice": ("is_causal = 0", "is_causal = 1", "no causality of its own"),
    "heads in front": ("perm = [1, 2, 0, 3]>(whole_key)", "perm = [2, 1, 0, 3]>(whole_key)",
                       "the cache turned back"),
    "joined": ("present_key = Transpose<perm = [1, 2, 0, 3]>(whole_key)",
               "present_key = Concat<axis = 2>(past_key, key)", ""),
}  # fmt: skip


def make():
    return FixedCache(refuse_left=True)


def changed(name: str) -> str:
    old, new, _ = CHANGES[name]
    assert old in BEFORE
    extra = {
        "mask from outside": "bool[batch,1,sequence,12] seen",
        "two places": "int64[sequence,1] others",
        "elements": "int64[batch,2,sequence,16] everywhere",
    }.get(name)
    text = BEFORE.replace(old, new)
    return text.replace("g (", f"g ({extra}, ") if extra else text


def feeds(rng, batch, sequence, filled, padding=0):
    mask = np.ones((batch, LENGTH), np.int64)
    if padding:
        mask[0, sequence - padding : sequence] = 0
    places = np.broadcast_to(np.arange(filled, filled + sequence), (batch, sequence))
    found = {
        "q": rng.standard_normal((batch, sequence, 64)).astype(np.float32),
        "position_ids": places.astype(np.int64),
        "attention_mask": mask,
    }
    for word in ("key", "value"):
        found[word[0]] = rng.standard_normal((batch, sequence, 32)).astype(np.float32)
        past = rng.standard_normal((batch, 2, LENGTH, 16)).astype(np.float32)
        past[:, :, filled:] = 0
        found[f"past_{word}"] = past
    return found


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize("name", CHANGES)
def test_near_miss(build, untouched, name):
    untouched(make(), build(changed(name)), CHANGES[name][2])


def test_numbers(build, same_numbers, rng):
    """A cache is filled in order; several rows get several tokens at a time when it is empty."""
    shapes = ((1, 4, 0), (2, 5, 0), (1, 1, 3), (2, 1, 7), (1, 3, 5), (1, 12, 0), (1, 1, 11))
    inputs = [feeds(rng, *shape) for shape in shapes]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)


def test_without_padding(build, same_numbers, rng):
    inputs = [feeds(rng, *shape) for shape in ((2, 4, 0), (1, 1, 3), (2, 1, 7))]
    text = BEFORE.replace(MASKED, "mask = Identity(causal)")
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)


def test_padding_on_the_right(build, run, rng):
    """The rows that are whole, and of a padded row what stands before the padding."""
    model = build(BEFORE)
    given = feeds(rng, 2, 6, 0, padding=2)
    want = run(model, given)
    make()(model)
    got = run(model, given)
    for name, axis in (("y", 1), ("present_key", 2), ("present_value", 2)):
        before = [np.take(found[name][0], range(4), axis - 1) for found in (want, got)]
        np.testing.assert_allclose(before[1], before[0], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(got[name][1], want[name][1], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements", "TensorScatter"])
def test_writes_are_near_misses_of_joined_caches(build, op):
    """What is not joined is told by its op and by the name of the cache."""
    text = changed("elements") if op == "ScatterElements" else BEFORE
    model = build(text)
    if op == "TensorScatter":
        write = next(n for n in model.graph if n.op_type == "ScatterND")
        write.op_type = op
    (miss,) = GroupQueryAttention().near_misses(model)
    assert f"found {op}, which writes into past_key" in str(miss)


def test_a_write_into_a_computed_value_is_no_cache(build):
    model = build(BEFORE.replace("(past_key)", "(doubled)").replace(
        "  split =", "  doubled = Add(past_key, past_key)\n  split =", 1))  # fmt: skip
    present = next(v for v in model.graph.outputs if v.name == "present_key")
    assert isinstance(present, ir.Value) and in_place(present) is None
