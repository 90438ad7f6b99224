"""Rotary tables."""

import numpy as np
import onnxruntime as ort
import pytest

from surgery.passes.rotary.freq_table import FreqTable, tabulate

ROWS = 50
BEFORE = """
g (int64[B,S] position) => (float[B,S,4] cos, float[B,S,4] sin)
<int64[1] last = {-1}, float[1,1,4] frequencies = {1, 0.1, 0.01, 0.001}, float scale = {1.25}> {
  lifted = Unsqueeze(position, last)
  number = Cast<to = 1>(lifted)
  angle = Mul(number, frequencies)
  c = Cos(angle)
  cos = Mul(c, scale)
  sin = Sin(angle)
}
"""
MISSES = [
    ("Mul(number, frequencies)", "Add(number, frequencies)", ""),
    ("Cast<to = 1>(lifted)", "Identity(floats)", "an operand of Mul from Cast"),
    ("Cast<to = 1>(lifted)", "Cast<to = 1>(doubled)", "from Unsqueeze"),
    ("Mul(number, frequencies)", "Mul(number, computed)", "constant frequencies"),
    ("last = {-1}", "last = {0}", "positions unsqueezed at the end"),
    ("int64[B,S] position", "int32[B,S] position", "int64 positions"),
    ("float[1,1,4] frequencies", "float[4,1] frequencies", "one row of frequencies"),
]
EXTRA = """
  floats = CastLike(lifted, scale)
  doubled = Add(lifted, lifted)
  computed = Neg(frequencies)
"""


def make():
    return FreqTable(ROWS)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace("  number =", EXTRA.lstrip("\n") + "  number =").replace(old, new)
    if "{0}" in new or "[4,1]" in new:
        text = text.replace("float[B,S,4]", "float[U,V,W,X]")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("new", ["Mul(c, c)", "Mul(c, sin)"])
def test_no_scale(build, same_numbers, new):
    """A product with something else than one number is not part of the table."""
    work = make()
    text = BEFORE.replace("  cos =", "  plus = Neg(angle)\n  cos =").replace("Mul(c, scale)", new)
    text = text.replace("  sin = Sin(angle)\n", "").replace("  c =", "  sin = Sin(angle)\n  c =")
    same_numbers(work, build(text), inputs(), rtol=0, atol=2e-7)
    assert work.count == 2


def test_scaled_and_plain(build, same_numbers):
    """The plain cosine is a graph output too: its table is not scaled."""
    text = BEFORE.replace("float[B,S,4] sin", "float[B,S,4] sin, float[B,S,4] c")
    same_numbers(make(), build(text), inputs(), rtol=0, atol=2e-7)


def inputs():
    for shape in ((1, 1), (3, 7), (1, ROWS), (2, 0)):
        count = int(np.prod(shape))
        yield {"position": (np.arange(count) * 31 % ROWS).reshape(shape).astype(np.int64)}
    yield {"position": np.array([[ROWS - 1, 0]], np.int64)}


def test_numbers(build, same_numbers):
    """One unit in the last place: the table is rounded from double precision."""
    same_numbers(make(), build(BEFORE), inputs(), rtol=0, atol=2e-7)


def test_large_positions():
    """Angles are rounded to float32 before the cosine, as PyTorch rounds them."""
    frequencies = (1 / 10000 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    table = tabulate("Cos", frequencies, 1.0, 40000)
    angle = np.float32(39999) * frequencies
    np.testing.assert_allclose(table[39999], np.cos(angle.astype(np.float64)), rtol=0, atol=6e-8)


def test_end_of_the_table(build, run):
    """A position beyond the table is an error, not a wrong angle."""
    model = build(BEFORE)
    make()(model)
    with pytest.raises(Exception, match="bounds") as error:
        run(model, {"position": np.array([[ROWS]], np.int64)})
    assert type(error.value).__module__.startswith(ort.__name__)


@pytest.mark.parametrize("width", [128, 256])
def test_wide_heads(build, same_numbers, width):
    """Head sizes of large models, whose frequencies are a constant of 256 or 512 bytes."""
    numbers = ", ".join(f"{10000.0 ** (-2 * i / width):.8g}" for i in range(width // 2))
    text = BEFORE.replace("S,4]", f"S,{width // 2}]")
    text = text.replace("[1,1,4] frequencies = {1, 0.1, 0.01, 0.001}",
                        f"[1,1,{width // 2}] frequencies = {{{numbers}}}")  # fmt: skip
    same_numbers(make(), build(text), inputs(), rtol=0, atol=2e-7)
