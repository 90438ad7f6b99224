"""DeepStack features as a dense addition."""

import numpy as np
import pytest

from surgery.passes.vision.deepstack import DeepStack

WIDTH, LEVELS = 8, 3


def level(index, hidden, out):
    """The scattered addition of one level, as a trace writes it."""
    i = index
    return f"""
  slice{i} = Slice(deepstack_features, n{i}, n{i + 1}, n0)
  features{i} = Squeeze(slice{i}, n0)
  where{i} = NonZero(visual_pos_masks)
  rows{i} = Transpose<perm = [1, 0]>(where{i})
  picked{i} = GatherND(hidden{i}, rows{i})
  sum{i} = Add(picked{i}, features{i})
  flat{i} = Reshape(sum{i}, all)
  wide{i} = Unsqueeze(visual_pos_masks, last)
  size{i} = Shape(hidden{i})
  spread{i} = Expand(wide{i}, size{i})
  every{i} = NonZero(spread{i})
  places{i} = Transpose<perm = [1, 0]>(every{i})
  done{i} = ScatterND(hidden{i}, places{i}, flat{i})
""".replace(f"hidden{i}", hidden).replace(f"done{i}", out)


BEFORE = (
    """
g (float[B,S,8] inputs_embeds, bool[B,S] visual_pos_masks, float[3,M,8] deepstack_features)
=> (float[B,S,8] y)
<int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n3 = {3}, int64[1] last = {-1},
 int64[1] all = {-1}> {
  h = Neg(inputs_embeds)"""
    + level(0, "h", "h0")
    + "  a = Exp(h0)"
    + level(1, "a", "h1")
    + "  b = Tanh(h1)"
    + level(2, "b", "h2")
    + "  y = Abs(h2)\n}\n"
)
ONE = BEFORE[: BEFORE.index("  a = Exp")] + "  y = Abs(h0)\n}\n"
MISSES = [
    ("Add(picked0, features0)", "Mul(picked0, features0)", "from Reshape or Expand or Add"),
    ("GatherND(h, rows0)", "GatherND(inputs_embeds, rows0)", "rows of the residual"),
    ("Slice(deepstack_features", "Slice(moved", "features that are a graph input"),
    ("Slice(deepstack_features, n0, n1, n0)", "Gather(deepstack_features, n0)", "from Slice"),
    ("every0 = NonZero(spread0)", "every0 = Abs(places)", "from NonZero"),
    ("where0 = NonZero(visual_pos_masks)", "where0 = NonZero(inverse)", "one mask"),
    ("ScatterND(", 'ScatterND<reduction = "add">(', "rows put in place"),
    ("n0, n1, n0)", "n0, n2, n0)", "one level"),
]


def make():
    return DeepStack()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in ONE
    text = ONE.replace(old, new)
    if "moved" in new:
        text = text.replace("  slice0", "  moved = Neg(deepstack_features)\n  slice0")
    if "inverse" in new:
        text = text.replace("  where0", "  inverse = Not(visual_pos_masks)\n  where0")
    if "places" in new:
        text = text.replace("bool[B,S]", "int64[3,K] places, bool[B,S]")
    if "n2, n0" in new:
        text = text.replace("Squeeze(slice0, n0)", "ReduceSum<keepdims = 0>(slice0, n0)")
        reason = "from Squeeze"
    untouched(make(), build(text), reason)


def dense(feeds):
    """per_layer_inputs: every level's features on their places, zeros elsewhere."""
    mask, features = feeds["visual_pos_masks"], feeds["deepstack_features"]
    out = np.zeros((*mask.shape, LEVELS * WIDTH), np.float32)
    out[mask] = np.concatenate(list(features), -1)
    return {**feeds, "per_layer_inputs": out}


def inputs(rng):
    """No picture, one token, all tokens, several rows."""
    masks = [np.zeros((1, 4), bool), np.ones((1, 1), bool), np.ones((2, 3), bool)]
    masks += [rng.random((3, 9)) < 0.5, np.zeros((2, 1), bool)]
    for mask in masks:
        yield {
            "inputs_embeds": rng.standard_normal((*mask.shape, WIDTH)).astype(np.float32),
            "visual_pos_masks": mask,
            "deepstack_features": rng.standard_normal((LEVELS, mask.sum(), WIDTH)).astype("f"),
        }


def test_numbers(build, same_numbers, rng):
    """Bit for bit, on text positions too."""
    same_numbers(make(), build(BEFORE), [dense(feeds) for feeds in inputs(rng)])


def test_inputs(build):
    model = build(BEFORE)
    make()(model)
    assert [v.name for v in model.graph.inputs] == ["inputs_embeds", "per_layer_inputs"]
    assert str(model.graph.inputs[1].shape) == "[B,S,24]"
