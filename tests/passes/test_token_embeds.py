"""Embeddings of tokens alone, with room for DeepStack features."""

import numpy as np
import pytest
from placeholder_graph import BEFORE, LEVELS, WIDTH

from surgery.passes.vision.token_embeds import TokenEmbeds

MISSES = [
    ("inputs_embeds = ScatterND(", "placed = ScatterND(", "a graph output"),
    ("Reshape(image_features, last)", "Reshape(scaled, last)", "features that are a graph input"),
    ("Slice(flat, front, count, front)", "Neg(flat)", "from Slice"),
    ("ScatterND(embeds", 'ScatterND<reduction = "add">(embeds', "rows put in place"),
]


def make():
    return TokenEmbeds(LEVELS)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "scaled" in new:
        text = text.replace("  flat =", "  scaled = Neg(image_features)\n  flat =")
    if "placed" in new:
        text = text.replace("\n}", "\n  inputs_embeds = Neg(placed)\n}")
        reason = ""  # the first condition: nothing was met before it
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("levels", [0, LEVELS])
def test_numbers(build, run, levels):
    """The row of the table for each token, zeros behind it; placeholders like any other."""
    model = build(BEFORE)
    table = model.graph.initializers["table_weight"].const_value.numpy()
    work = TokenEmbeds(levels)
    work(model)
    assert [v.name for v in model.graph.inputs] == ["input_ids"]
    assert str(model.graph.outputs[0].shape) == f"[B,S,{WIDTH * (1 + levels)}]"
    for ids in ([[7]], [[1, 7, 7, 2], [7, 0, 3, 7]], [[5, 8, 0]]):
        got = run(model, {"input_ids": np.array(ids, np.int64)})
        rows = table[np.array(ids)]
        zeros = np.zeros((*rows.shape[:2], WIDTH * levels), np.float32)
        assert list(got) == ["inputs_embeds"]
        assert np.array_equal(got["inputs_embeds"], np.concatenate([rows, zeros], -1))
