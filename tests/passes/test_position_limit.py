"""Positions that do not exceed the number of tokens."""

import numpy as np
import pytest

from surgery.passes.rotary.position_limit import PositionLimit

BEFORE = """
g (int64[3,B,S] position_ids, int64[B,T] attention_mask, float[40,2] rows_weight)
=> (float[3,B,S,2] y, int64[B,T] kept)
<int64[1] front = {0}> {
  picked = Gather(rows_weight, position_ids)
  more = Cast<to = 1>(position_ids)
  column = Unsqueeze(more, last)
  y = Add(picked, column)
  kept = Identity(attention_mask)
}
""".replace("{0}>", "{0}, int64[1] last = {-1}>")
MISSES = [
    ("int64[3,B,S] position_ids", "int64[B,S] position_ids"),
    ("int64[B,T] attention_mask", "int64[B,1,T] attention_mask"),
    ("position_ids", "places"),
    ("attention_mask", "mask"),
]


def make():
    return PositionLimit()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new"), MISSES)
def test_near_miss(build, untouched, old, new):
    text = BEFORE.replace(old, new)
    if "int64[B,S] pos" in new:
        text = text.replace("float[3,B,S,2] y", "float[B,S,2] y")
    if "B,1,T" in new:
        text = text.replace("int64[B,T] kept", "int64[B,1,T] kept")
    untouched(make(), build(text), "")


def test_numbers(build, run):
    """Positions of a prompt, of a picture and of an answer stay; one too large is the last."""
    before, after = build(BEFORE), build(BEFORE)
    make()(after)
    prompt = np.broadcast_to(np.arange(7), (3, 1, 7))
    picture = np.array([[[0, 1, 1, 1, 1, 3]], [[0, 1, 1, 2, 2, 3]], [[0, 1, 2, 1, 2, 3]]])
    for positions, total, wanted in (
        (prompt, 7, prompt),
        (picture, 6, picture),
        (np.full((3, 1, 1), 21), 8, np.full((3, 1, 1), 7)),
        (np.full((3, 1, 1), 5), 8, np.full((3, 1, 1), 5)),
    ):
        mask = np.ones((1, total), np.int64)
        want = run(before, {"position_ids": wanted.astype(np.int64), "attention_mask": mask})
        got = run(after, {"position_ids": positions.astype(np.int64), "attention_mask": mask})
        assert np.array_equal(got["y"], want["y"])


def test_each_row_has_its_own_limit(build, run):
    """Padding does not count."""
    model = build(BEFORE)
    make()(model)
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1]], np.int64)
    feeds = {"position_ids": np.full((3, 2, 1), 30), "attention_mask": mask}
    own = np.broadcast_to(np.array([[3], [1]]), (3, 2, 1)).copy()
    want = run(build(BEFORE), {**feeds, "position_ids": own})
    assert np.array_equal(run(model, feeds)["y"], want["y"])
