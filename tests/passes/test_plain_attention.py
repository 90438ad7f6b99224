"""Attention written out."""

import numpy as np
import pytest

from surgery.passes.attention.attention import Attention
from surgery.passes.attention.plain_attention import PlainAttention
from surgery.passes.tidy.opset import Opset

BEFORE = """
g (float[B,4,S,8] q, float[B,2,T,8] k, float[B,2,T,8] v, bool[B,1,S,T] seen)
=> (float[B,4,S,8] y) {
  y = Attention<scale = 0.3, is_causal = 0, softcap = 2.0>(q, k, v, seen)
}
"""
MISSES = [
    ("is_causal = 0", "is_causal = 1", "no causality of its own"),
    ("float[B,4,S,8] q", "float[B,N,S,8] q", "known heads"),
    ("bool[B,1,S,T] seen", "uint8[B,1,S,T] seen", "a mask of bool or float32"),
]


def make():
    return PlainAttention()


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


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    untouched(make(), build(BEFORE.replace(old, new)), reason)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        (", softcap = 2.0", ""),
        ("scale = 0.3, ", ""),
        ("float[B,4,S,8]", "float[B,2,S,8]"),
        ("bool[B,1,S,T] seen", "float[B,1,S,T] added"),
        (", bool[B,1,S,T] seen", ""),
    ],
)
def test_numbers(build, same_numbers, rng, old, new):
    """Caps, scales, masks of both kinds and none, with heads repeated and not."""
    text = BEFORE.replace(old, new) if old else BEFORE
    if "added" in new:
        text = text.replace("v, seen)", "v, added)").replace(", softcap = 2.0", "")
    if not new and "seen" in old:
        text = text.replace("v, seen)", "v)")
    cases = []
    for feeds in inputs(rng):
        feeds["q"] = feeds["q"][:, :2] if "2,S,8] q" in text else feeds["q"]
        cases.append({k: x for k, x in feeds.items() if f"] {k}" in text})
    model = build(text)
    same_numbers(make(), model, cases, rtol=2e-5, atol=2e-6)
    Opset(21)(model)


def test_there_and_back(build):
    """What `attention` makes of it is what was there."""
    model = build(BEFORE.replace(", softcap = 2.0", ""))
    make()(model)
    again = Attention()
    again(model)
    assert again.count == 1
