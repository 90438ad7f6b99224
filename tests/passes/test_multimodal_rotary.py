"""Multimodal rotary embedding as one node."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.passes.rotary.multimodal_rotary import MultimodalRotary
from surgery.rewrite import view

ROWS, HEADS, WIDTH = 40, 3, 16
INTERLEAVED = "{0,1,0,0,1,0,0,0}", "{0,0,1,0,0,1,0,0}"
SECTIONED = "{0,0,0,0,1,1,0,0}", "{0,0,0,0,0,0,1,1}"
"""Which of 8 frequencies the second and the third position axis turn."""


def graph(masks=INTERLEAVED, heads=HEADS):
    return f"""
g (float[B,S,{heads},{WIDTH}] q, int64[3,B,S] position_ids, float[{ROWS},8] cos_table_weight,
   float[{ROWS},8] sin_table_weight) => (float[B,{heads},S,{WIDTH}] y)
<bool[8] on_h = {masks[0]}, bool[8] on_w = {masks[1]}, int64[1] room = {{1}}, int64[1] zero = {{0}},
 int64[1] half = {{8}}, int64[1] axis = {{3}}, int64[1] far = {{9223372036854775807}},
 int64[1] front = {{0}}, int64 t = {{0}}, int64 h = {{1}}, int64 w = {{2}}> {{
  cs = Gather<axis = 0>(cos_table_weight, position_ids)
  ct = Gather<axis = 0>(cs, t)
  ch = Gather<axis = 0>(cs, h)
  cw = Gather<axis = 0>(cs, w)
  cth = Where(on_h, ch, ct)
  c = Where(on_w, cw, cth)
  cc = Concat<axis = -1>(c, c)
  ss = Gather<axis = 0>(sin_table_weight, position_ids)
  st = Gather<axis = 0>(ss, t)
  sh = Gather<axis = 0>(ss, h)
  sw = Gather<axis = 0>(ss, w)
  sth = Where(on_h, sh, st)
  s = Where(on_w, sw, sth)
  sc = Concat<axis = -1>(s, s)
  x = Transpose<perm = [0, 2, 1, 3]>(q)
  cos = Unsqueeze(cc, room)
  sin = Unsqueeze(sc, room)
  straight = Mul(x, cos)
  first = Slice(x, zero, half, axis)
  second = Slice(x, half, far, axis)
  negated = Neg(second)
  turned = Concat<axis = -1>(negated, first)
  across = Mul(turned, sin)
  y = Add(straight, across)
}}
"""


BEFORE = graph()
MISSES = [
    ("on_h = {0,1,0,0,1,0,0,0}", "on_h = {1,0,0,0,1,0,0,0}", "neither interleaved nor sectioned"),
    ("c = Where(on_w, cw, cth)", "c = Mul(cw, cth)", "neither interleaved nor sectioned"),
    ("Concat<axis = -1>(c, c)", "Concat<axis = -1>(c, ct)", "neither interleaved nor sectioned"),
    ("Concat<axis = -1>(s, s)", "Concat<axis = -1>(st, st)", "the same pick"),
    ("int64[3,B,S] position_ids", "int64[4,B,S] position_ids", "positions of shape"),
    ("sin_table_weight, position_ids)\n  st", "sin_table_weight, others)\n  st",
     "the same positions"),
    ("Where(on_w, cw, cth)", "Where(dynamic, cw, cth)", "reads more than the table"),
    ("Where(on_h, ch, ct)", "Where(on_h, sh, ct)", "2 tables"),
    ("room = {1}", "room = {2}", "a head axis added at 1"),
    ("half = {8}", "half = {7}", "a first half of 8"),
]  # fmt: skip


def make():
    return MultimodalRotary()


def prepare(model):
    """Tables as constants in the graph, as `freq_table` leaves them."""
    angles = np.arange(ROWS)[:, None] * 0.4 ** np.arange(8)
    for name, table in (("cos_table_weight", np.cos(angles)), ("sin_table_weight", np.sin(angles))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(table.astype(np.float32), name=name)


def built(build, text):
    model = build(text)
    prepare(model)
    return model


def test_golden(build, golden):
    golden(make(), built(build, BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "others" in new:
        text = text.replace("  cs =", "  others = Abs(position_ids)\n  cs =")
    if "(c, ct)" in new:
        text = text.replace("(s, s)", "(s, st)")
    if "Mul" in new:
        text = text.replace("s = Where(on_w, sw, sth)", "s = Mul(sw, sth)")
    if "dynamic" in new:
        text = text.replace("float[40,8] cos", "bool[8] dynamic, float[40,8] cos")
    if "sh, ct" in new:
        moved = "  ss = Gather<axis = 0>(sin_table_weight, position_ids)\n"
        more = "  sh = Gather<axis = 0>(ss, h)\n"
        text = text.replace(moved, "").replace(more, "").replace("  cth", moved + more + "  cth")
    if "room" in new:
        text = text.replace(f"B,{HEADS},S", "B,S,S").replace(f"B,S,{HEADS}", "B,S,S")
    if "half" in new:
        text = text.replace(f"float[B,{HEADS},S,{WIDTH}] y", f"float[B,{HEADS},S,Z] y")
    untouched(make(), built(build, text), reason)


def inputs(rng):
    """Text alone, pictures, the end of the table, one token, a batch of three."""
    for b, s in ((1, 1), (3, 7), (2, 1), (1, 30)):
        q = rng.standard_normal((b, s, HEADS, WIDTH)).astype(np.float32)
        yield {"q": q, "position_ids": rng.integers(0, ROWS, (3, b, s))}
        yield {"q": q, "position_ids": np.tile(np.arange(s), (3, b, 1))}
        yield {"q": q, "position_ids": np.full((3, b, s), ROWS - 1)}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masks", [INTERLEAVED, SECTIONED], ids=["interleaved", "sectioned"])
def test_numbers(build, same_numbers, rng, masks, fused):
    same_numbers(
        MultimodalRotary(fused), built(build, graph(masks)), inputs(rng), rtol=0, atol=5e-7
    )


@pytest.mark.parametrize("masks", [INTERLEAVED, SECTIONED], ids=["interleaved", "sectioned"])
def test_sections(build, masks):
    model = built(build, graph(masks))
    make()(model)
    layout = int(masks == INTERLEAVED)
    assert f"mrope_layout={layout}, mrope_section=[4, 2, 2]" in view.text(model)


def test_heads_in_front_already(build, same_numbers, rng):
    """Without a transpose to go around, the op takes four axes."""
    text = BEFORE.replace("x = Transpose<perm = [0, 2, 1, 3]>(q)", "x = Neg(q)")
    text = text.replace(f"float[B,S,{HEADS},{WIDTH}] q", f"float[B,{HEADS},S,{WIDTH}] q")
    turned = [{**feeds, "q": feeds["q"].swapaxes(1, 2)} for feeds in inputs(rng)]
    same_numbers(make(), built(build, text), turned, rtol=0, atol=5e-7)


def test_two_readers_of_one_pick(build, same_numbers, rng):
    """Queries and keys: two rotations by the same angles."""
    again = BEFORE[BEFORE.index("  straight") : BEFORE.index("}\n", BEFORE.index("  y ="))]
    for name in ("straight", "first", "second", "negated", "turned", "across", "y"):
        again = again.replace(name, f"{name}2")
    text = BEFORE.replace("y = Add(straight, across)", "y1 = Add(straight, across)")
    text = text.rstrip().rstrip("}") + again + "  y = Mul(y1, y2)\n}"
    work = make()
    same_numbers(work, built(build, text), inputs(rng), rtol=1e-5, atol=2e-6)
    assert work.count == 2
