"""Shapes in which families differ, each the smallest graph, with the passes that take it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgery.passes.attention.attention import Attention
from surgery.passes.attention.group_query_attention import GroupQueryAttention
from surgery.passes.attention.multi_head_attention import MultiHeadAttention
from surgery.passes.mlp.gelu import Gelu
from surgery.passes.mlp.layer_scale import LayerScale
from surgery.passes.norms.head_norm import HeadNorm
from surgery.passes.norms.rms_norm import RmsNorm
from surgery.passes.outputs.last_logits import LastLogits
from surgery.passes.rotary.freq_table import FreqTable
from surgery.passes.rotary.half_angles import HalfAngles
from surgery.passes.rotary.late_repeat import LateRepeat
from surgery.passes.rotary.multimodal_rotary import MultimodalRotary
from surgery.passes.rotary.rotary import Rotary
from surgery.passes.tidy.slices import Slices
from surgery.passes.weights.weight_shift import WeightShift
from surgery.rewrite.contract import Pass


@dataclass(frozen=True)
class Shape:
    """A graph as ONNX text, the passes that act on it in order, and inputs.

    Attributes:
        text: the graph.
        passes: made anew for each test.
        sites: how often each acts.
        sizes: of the named axes, a row a case.
        last: only the last position of `logits` is kept.
    """

    text: str
    passes: Callable[[], list[Pass]]
    sites: tuple[int, ...]
    sizes: tuple[dict[str, int], ...]
    last: bool = False


def feeds(model: Any, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Random numbers, small positions, masks of ones."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape]
        if value.name == "mask":
            found[value.name] = np.ones(shape, np.int64)
        elif value.name == "order":
            found[value.name] = rng.permutation(shape[0])
        elif value.dtype.is_floating_point():
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            found[value.name] = rng.integers(0, 32, shape)
    return found


CONSTANTS = """int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n4 = {4},
 int64[1] n8 = {8}, int64[1] last = {-1}, int64[1] far = {9223372036854775807}, int64[1] axis = {3},
 float[1,1,4] frequencies = {1, 0.1, 0.01, 0.001}"""
ANGLES = """
  lifted = Unsqueeze(position, last)
  number = Cast<to = 1>(lifted)
  angle = Mul(number, frequencies)"""
TWICE = """
  doubled = Concat<axis = -1>(angle, angle)
  c = Cos(doubled)
  s = Sin(doubled)
  cos = Unsqueeze(c, n1)
  sin = Unsqueeze(s, n1)"""
HALVES = """
  first = Slice(x, n0, n4, axis, n1)
  second = Slice(x, n4, far, axis, n1)
  negated = Neg(second)
  turned = Concat<axis = -1>(negated, first)
  straight = Mul(x, cos)
  across = Mul(turned, sin)
  y = Add(straight, across)"""
PAIRED = """
  beside = Unsqueeze(angle, last)
  spread = Expand(beside, pair)
  doubled = Reshape(spread, rows)
  c = Cos(doubled)
  s = Sin(doubled)
  cos = Unsqueeze(c, n1)
  sin = Unsqueeze(s, n1)"""
PAIRS = """
  first = Slice(x, n0, far, axis, n2)
  second = Slice(x, n1, far, axis, n2)
  negated = Neg(second)
  a = Unsqueeze(negated, last)
  b = Unsqueeze(first, last)
  stacked = Concat<axis = -1>(a, b)
  turned = Reshape(stacked, heads)
  straight = Mul(x, cos)
  across = Mul(turned, sin)
  y = Add(straight, across)"""
PAIR_CONSTANTS = """int64[4] pair = {1, 1, 1, 2}, int64[3] rows = {0, 0, 8},
 int64[4] heads = {0, 3, 0, 8}, """
TOKENS = ({"B": 1, "S": 1}, {"B": 3, "S": 5}, {"B": 2, "S": 17})


def rope(angles: str, turn: str, x: str = "float[B,3,S,8] x", extra: str = "") -> str:
    """A rotation of `x` by positions."""
    y = x.replace(" x", " y")
    return f"g (int64[B,S] position, {x}) => ({y})\n<{extra}{CONSTANTS}> {{{angles}{turn}\n}}"


def partial(text: str) -> str:
    """Only the first 8 of 12 columns turn."""
    text = text.replace("float[B,3,S,8]", "float[B,3,S,12]").replace("[B,3,S,12] x", "[B,3,S,12] w")
    text = text.replace("  first =", "  x = Slice(w, n0, n8, axis, n1)\n  first =", 1)
    return text.replace(
        "  y = Add", "  rest = Slice(w, n8, far, axis, n1)\n  z = Add"
    ).replace("\n}", "\n  y = Concat<axis = -1>(z, rest)\n}")  # fmt: skip


SECTIONS = """
  c4 = Cos(angle)
  s4 = Sin(angle)
  ct, ch, cw = Split<axis = -1>(c4, sections)
  st, sh, sw = Split<axis = -1>(s4, sections)
  c0 = Gather<axis = 0>(ct, i0)
  c1 = Gather<axis = 0>(ch, i1)
  c2 = Gather<axis = 0>(cw, i2)
  s0 = Gather<axis = 0>(st, i0)
  s1 = Gather<axis = 0>(sh, i1)
  s2 = Gather<axis = 0>(sw, i2)
  cp = Concat<axis = -1>(c0, c1, c2)
  sp = Concat<axis = -1>(s0, s1, s2)"""
SECTION_CONSTANTS = """int64[3] sections = {1, 2, 1}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2},
 """
SECTION_TWICE = """
  c = Concat<axis = -1>(cp, cp)
  s = Concat<axis = -1>(sp, sp)
  cos = Unsqueeze(c, n1)
  sin = Unsqueeze(s, n1)"""
SECTION_PAIRED = """
  cb = Unsqueeze(cp, last)
  sb = Unsqueeze(sp, last)
  ce = Expand(cb, pair)
  se = Expand(sb, pair)
  c = Reshape(ce, rows)
  s = Reshape(se, rows)
  cos = Unsqueeze(c, n1)
  sin = Unsqueeze(s, n1)"""


def sectioned(text: str) -> str:
    """Three position axes in place of one."""
    return text.replace("int64[B,S] position", "int64[3,B,S] position").replace(
        "float[1,1,4] frequencies", "float[1,1,1,4] frequencies"
    )


ATTENTION = """g (float[B,S,32] h, int64[B,T] mask, float[B,2,P,8] past_k, float[B,2,P,8] past_v,
   {weights}) => (float[B,S,32] y, float[B,2,T,8] key, float[B,2,T,8] value)
<int64[4] q_heads = {{0, 0, 4, 8}}, int64[4] kv_heads = {{0, 0, 2, 8}}, int64[3] merged = {{0, 0, 32}},
 int64 nil = {{0}}, int64 step = {{1}}, int64[3] a012 = {{0, 1, 2}}, int64[3] a013 = {{0, 1, 3}},
 int64[2] a12 = {{1, 2}}, int64 window = {{4}}, int64[1] n0 = {{0}}, int64[1] n32 = {{32}},
 int64[1] n48 = {{48}}, int64[1] far = {{9223372036854775807}}, int64[1] axis = {{2}}> {{{projections}
  qs = Reshape(q, q_heads)
  query = Transpose<perm = [0, 2, 1, 3]>(qs)
  ks = Reshape(k, kv_heads)
  new_key = Transpose<perm = [0, 2, 1, 3]>(ks)
  vs = Reshape(v, kv_heads)
  new_value = Transpose<perm = [0, 2, 1, 3]>(vs)
  key = Concat<axis = 2>(past_k, new_key)
  value = Concat<axis = 2>(past_v, new_value)
  valid = Cast<to = 9>(mask)
  wide = Unsqueeze(valid, a12)
  length = Shape<start = 1, end = 2>(h)
  s = Squeeze(length)
  before = Shape<start = 2, end = 3>(past_k)
  p = Squeeze(before)
  t = Add(s, p)
  new = Range(nil, s, step)
  row = Add(new, p)
  column = Range(nil, t, step)
  rows = Unsqueeze(row, a013)
  columns = Unsqueeze(column, a012)
  causal = LessOrEqual(columns, rows){window}
  allowed = And({near}, wide)
  scores = Attention<scale = 0.3, is_causal = 0>(query, key, value, allowed)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, merged)
}}"""
PLAIN = {
    "weights": "float[32,32] wq, float[32,16] wk, float[32,16] wv",
    "projections": "\n  q = MatMul(h, wq)\n  k = MatMul(h, wk)\n  v = MatMul(h, wv)",
    "window": "",
    "near": "causal",
}
BIASED = {
    "weights": PLAIN["weights"] + ",\n   float[32] bq, float[16] bk, float[16] bv",
    "projections": "".join(
        f"\n  {n}0 = MatMul(h, w{n})\n  {n} = Add({n}0, b{n})" for n in ("q", "k", "v")
    ),
}
FUSED = {
    "weights": "float[32,64] w",
    "projections": "\n  all = MatMul(h, w)\n  q = Slice(all, n0, n32, axis)\n"
    "  k = Slice(all, n32, n48, axis)\n  v = Slice(all, n48, far, axis)",
}
WINDOW = {
    "window": "\n  edge = Sub(rows, window)\n  inside = Greater(columns, edge)\n"
    "  both = And(causal, inside)",
    "near": "both",
}
CACHE = tuple(
    {"B": b, "S": s, "P": p, "T": s + p}
    for b, s, p in ((1, 1, 0), (3, 6, 0), (2, 1, 9), (1, 5, 3), (1, 1, 30))
)

LAYER_SCALE = """g (float[B,S,6] x, float[8,6] w_weight, float[8] b_bias, float[8] s_weight,
   float[6,8] u_weight, float[8] r_weight) => (float[B,S,8] y, float[B,S,8] z) {
  t = Transpose<perm = [1, 0]>(w_weight)
  m = MatMul(x, t)
  p = Add(m, b_bias)
  y = Mul(p, s_weight)
  n = MatMul(x, u_weight)
  z = Mul(n, r_weight)
}"""
GATED_ERF = """g (float[B,S,6] gate, float[B,S,6] up) => (float[B,S,6] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}> {
  d = Div(gate, root)
  e = Erf(d)
  f = Add(e, one)
  m = Mul(gate, f)
  act = Mul(m, half)
  y = Mul(act, up)
}"""
GATED_TANH = """g (float[B,S,6] gate, float[B,S,6] up) => (float[B,S,6] y)
<float k = {0.7978846}, float c = {0.044715}, float three = {3}, float one = {1}, float half = {0.5}> {
  cube = Pow(gate, three)
  bent = Mul(cube, c)
  sum = Add(gate, bent)
  inner = Mul(sum, k)
  t = Tanh(inner)
  f = Add(t, one)
  h = Mul(gate, half)
  act = Mul(h, f)
  y = Mul(act, up)
}"""
OFFSET_NORM = """g (float[B,S,3,8] x, float[8] w_weight) => (float[B,3,S,8] y)
<float two = {2}, float one = {1}, float eps = {0.000001}, int64[1] last = {-1}> {
  h = Transpose<perm = [0, 2, 1, 3]>(x)
  p = Pow(h, two)
  m = ReduceMean<keepdims = 1>(p, last)
  a = Add(m, eps)
  r = Sqrt(a)
  i = Reciprocal(r)
  n = Mul(h, i)
  w = Add(w_weight, one)
  y = Mul(n, w)
}"""
CAPPED_LOGITS = """g (float[B,S,6] h, float[6,10] w) => (float[B,S,10] logits)
<float cap = {30}> {
  m = MatMul(h, w)
  d = Div(m, cap)
  t = Tanh(d)
  logits = Mul(t, cap)
}"""
WINDOWS = """g (float[P,4] c, int64[M] order, int64[3] blocks, int64[2] rows) => (float[P,8] y)
<int64[1] four = {4}, int64[1] open = {-1}, int64[1] n1 = {1}> {
  doubled = Concat<axis = -1>(c, c)
  count = Shape(order)
  shape = Concat<axis = 0>(count, four, open)
  grouped = Reshape(doubled, shape)
  moved = Gather<axis = 0>(grouped, order)
  all = Shape<start = 0, end = 1>(c)
  back = Concat<axis = 0>(all, open)
  y = Reshape(moved, back)
}"""
WRITTEN = """g (float[B,S,12] q, float[B,S,12] k, float[B,S,12] v) => (float[B,S,12] y)
<int64[4] heads = {0, 0, 3, 4}, int64[3] merged = {0, 0, 12}, float root = {0.7071068}> {
  qs = Reshape(q, heads)
  ks = Reshape(k, heads)
  vs = Reshape(v, heads)
  query = Transpose<perm = [0, 2, 1, 3]>(qs)
  key = Transpose<perm = [0, 2, 3, 1]>(ks)
  value = Transpose<perm = [0, 2, 1, 3]>(vs)
  a = Mul(query, root)
  b = Mul(key, root)
  scores = MatMul(a, b)
  weights = Softmax<axis = -1>(scores)
  mixed = MatMul(weights, value)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  y = Reshape(back, merged)
}"""


def table() -> list[Pass]:
    return [HalfAngles(), FreqTable(32), Rotary()]


def multiaxial() -> list[Pass]:
    return [FreqTable(32), MultimodalRotary()]


PAIR_ROPE = rope(ANGLES + PAIRED, PAIRS, extra=PAIR_CONSTANTS)
SECTION_ROPE = rope(ANGLES + SECTIONS + SECTION_TWICE, HALVES, extra=SECTION_CONSTANTS)
GLM_ROPE = rope(ANGLES + SECTIONS + SECTION_PAIRED, PAIRS, extra=PAIR_CONSTANTS + SECTION_CONSTANTS)
SHAPES = {
    "plain_rope": Shape(rope(ANGLES + TWICE, HALVES), table, (2, 2, 1), TOKENS),
    "partial_rotary": Shape(partial(rope(ANGLES + TWICE, HALVES)), table, (2, 2, 1), TOKENS),
    "paired_rotary": Shape(PAIR_ROPE, table, (2, 2, 1), TOKENS),
    "partial_paired_rotary": Shape(partial(PAIR_ROPE), table, (2, 2, 1), TOKENS),
    "sectioned_mrope": Shape(sectioned(SECTION_ROPE), multiaxial, (2, 1), TOKENS),
    "paired_mrope": Shape(sectioned(partial(GLM_ROPE)), multiaxial, (2, 1), TOKENS),
    "no_qk_norm": Shape(ATTENTION.format(**PLAIN), lambda: [GroupQueryAttention()], (1,), CACHE),
    "biases": Shape(ATTENTION.format(**PLAIN | BIASED), lambda: [GroupQueryAttention()], (1,), CACHE),
    "fused_qkv": Shape(
        ATTENTION.format(**PLAIN | FUSED), lambda: [Slices(), GroupQueryAttention()], (1, 1), CACHE
    ),
    "sliding_window": Shape(ATTENTION.format(**PLAIN | WINDOW), lambda: [GroupQueryAttention()], (1,), CACHE),
    "layer_scale": Shape(LAYER_SCALE, lambda: [LayerScale()], (2,), TOKENS),
    "gated_gelu_erf": Shape(GATED_ERF, lambda: [Gelu()], (1,), TOKENS),
    "gated_gelu_tanh": Shape(GATED_TANH, lambda: [Gelu()], (1,), TOKENS),
    "offset_head_norm": Shape(
        OFFSET_NORM, lambda: [WeightShift(), RmsNorm(), HeadNorm()], (1, 1, 1), TOKENS
    ),
    "capped_logits": Shape(CAPPED_LOGITS, lambda: [LastLogits()], (1,), TOKENS, True),
    "windowed_angles": Shape(
        WINDOWS.replace(", int64[3] blocks, int64[2] rows", ""), lambda: [LateRepeat()], (1,),
        ({"P": 4, "M": 1}, {"P": 12, "M": 3}, {"P": 40, "M": 10}),
    ),
    "written_attention": Shape(WRITTEN, lambda: [Attention(), MultiHeadAttention()], (1, 1), TOKENS),
}  # fmt: skip
