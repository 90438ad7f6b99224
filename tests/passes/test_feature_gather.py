"""Features gathered by placeholder."""

import numpy as np
import pytest
from placeholder_graph import BEFORE, LEVELS, WIDTH

from surgery.passes.vision.feature_gather import FeatureGather

MISSES = [
    ("Reshape(image_features, last)", "Reshape(scaled, last)", "features that are a graph input"),
    ("where = NonZero(spread)", "where = Cast<to = 7>(floats)", "from NonZero"),
    ("Slice(flat, front, count, front)", "Neg(flat)", "from Slice"),
    ("spread = Expand(wide, size)", "spread = Equal(embeds, embeds)", "from Expand or Unsqueeze"),
    ("ScatterND(embeds", 'ScatterND<reduction = "add">(embeds', "rows put in place"),
]


def make():
    return FeatureGather(LEVELS)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "scaled" in new:
        text = text.replace("  flat =", "  scaled = Neg(image_features)\n  flat =")
    if "floats" in new:
        text = text.replace("  where =", "  floats = Cast<to = 1>(spread)\n  where =")
        text = text.replace("[1, 0]>(where)", "[0, 1, 2]>(where)")
    untouched(make(), build(text), reason)


def feeds(rng, ids, m):
    features = rng.standard_normal((m, WIDTH * (1 + LEVELS))).astype(np.float32)
    return {"input_ids": np.array(ids, np.int64), "image_features": features}


FULL = [
    ([[7]], 1), ([[7, 7, 7]], 3), ([[1, 7, 7, 2], [7, 0, 3, 7], [1, 1, 1, 1]], 4),
    ([[1, 2, 3]], 0), ([[8]], 0), ([[1], [7], [2]], 1),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "m"), FULL)
def test_numbers(build, run, rng, ids, m):
    """As many features as placeholders: bit for bit what the scatter did, levels beside it."""
    given = feeds(rng, ids, m)
    plain = {**given, "image_features": np.ascontiguousarray(given["image_features"][:, :WIDTH])}
    model = build(BEFORE)
    want = run(model, plain)
    make()(model)
    got = run(model, given)
    assert list(got) == ["inputs_embeds", "per_layer_inputs"]
    assert np.array_equal(got["inputs_embeds"], want["inputs_embeds"])
    levels = np.zeros((*given["input_ids"].shape, WIDTH * LEVELS), np.float32)
    levels[given["input_ids"] == 7] = given["image_features"][:, WIDTH:]
    assert np.array_equal(got["per_layer_inputs"], levels)


@pytest.mark.parametrize(("ids", "m"), [
    ([[7, 1, 7]], 0), ([[7, 1, 7], [7, 7, 0]], 3), ([[7]], 0), ([[1, 7]], 3), ([[1, 2]], 2),
])  # fmt: skip
def test_other_number_of_features(build, run, rng, ids, m):
    """A placeholder without a feature keeps its own embedding, a feature too many is ignored."""
    given = feeds(rng, ids, m)
    model = build(BEFORE)
    table = model.graph.initializers["table_weight"].const_value.numpy()
    make()(model)
    got = run(model, given)
    want = table[given["input_ids"]]
    levels = np.zeros((*want.shape[:2], WIDTH * LEVELS), np.float32)
    for feature, place in zip(given["image_features"], np.argwhere(given["input_ids"] == 7)):
        want[tuple(place)], levels[tuple(place)] = feature[:WIDTH], feature[WIDTH:]
    assert np.array_equal(got["inputs_embeds"], want)
    assert np.array_equal(got["per_layer_inputs"], levels)


def test_input_is_wide(build):
    model = build(BEFORE)
    make()(model)
    assert str(model.graph.inputs[1].shape) == "[M,12]"
