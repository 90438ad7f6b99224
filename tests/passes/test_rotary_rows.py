"""RotaryEmbedding of heads as onnxruntime's of rows."""

import numpy as np
import pytest

from surgery.passes.rotary.rotary_rows import RotaryRows

BEFORE = """
g (float[B,S,24] x, int64[B,S] at, float[32,4] cos, float[32,4] sin) => (float[B,3,S,8] y)
<int64[4] split = {0, 0, 3, 8}> {
  rows = Reshape(x, split)
  heads = Transpose<perm = [0, 2, 1, 3]>(rows)
  c = Gather(cos, at)
  s = Gather(sin, at)
  y = RotaryEmbedding(heads, c, s)
}
"""
CONTRIB = BEFORE.replace(
    "y = RotaryEmbedding(heads, c, s)", "y = com.microsoft.RotaryEmbedding(heads, at, cos, sin)"
).replace("  c = Gather(cos, at)\n  s = Gather(sin, at)\n", "")
FIRST = CONTRIB.replace("int64[B,S] at", "int64[1] at")
"""onnxruntime's own op on heads, as partly fused graphs have it; by the first position alone."""
MISSES = {
    "a factor": (CONTRIB.replace("RotaryEmbedding(", "RotaryEmbedding<scale = 2.0>("), "a factor"),
    "packed": (
        CONTRIB.replace("RotaryEmbedding(", "RotaryEmbedding<is_packed_batching = 1>("),
        "packed batches",
    ),
    "computed": (BEFORE.replace("c = Gather(cos, at)", "c = Sin(s)"), "from Gather"),
    "other positions": (
        BEFORE.replace("int64[B,S] at,", "int64[B,S] at, int64[B,S] other,").replace(
            "Gather(sin, at)", "Gather(sin, other)"
        ),
        "the same positions for both",
    ),
    "no rows": (
        BEFORE.replace("x, int64", "x, float[B,3,S,8] heads, int64").replace(
            "  heads = Transpose<perm = [0, 2, 1, 3]>(rows)\n", ""
        ),
        "heads made of rows",
    ),
}


def make():
    return RotaryRows()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("attributes", ["", "<interleaved = 1>"])
def test_onnxruntimes_own(build, same_numbers, rng, attributes):
    """Heads in, rows out: attention then finds the rows behind them."""
    model = build(CONTRIB.replace("RotaryEmbedding(", f"RotaryEmbedding{attributes}("))
    cases = [feeds(rng, b, s) for b, s in ((1, 1), (2, 5), (3, 7))]
    same_numbers(make(), model, cases)
    (node,) = (node for node in model.graph if node.op_type == "RotaryEmbedding")
    assert node.inputs[0] is model.graph.inputs[0]


def test_first_position(build, same_numbers, rng):
    cases = [feeds(rng, b, s) | {"at": np.array([at])} for b, s, at in ((1, 1, 9), (2, 5, 0))]
    same_numbers(make(), build(FIRST), cases)


def feeds(rng, batch, length, rows=None):
    angles = np.arange(32)[:, None] * rng.random(4)[None]
    return {
        "x": rng.standard_normal((batch, length, 24)).astype(np.float32),
        "at": rng.integers(0, 32, (rows or batch, length)),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def test_numbers(build, same_numbers, rng):
    cases = [feeds(rng, b, s) for b, s in ((1, 1), (2, 5), (3, 7))]
    same_numbers(make(), build(BEFORE), cases)


def test_positions_of_one_row(build, same_numbers, rng):
    """Positions that hold for every row of the batch."""
    model = build(BEFORE.replace("int64[B,S] at", "int64[1,S] at"))
    expanded = [feeds(rng, 1, 4)]
    same_numbers(make(), model, expanded)
