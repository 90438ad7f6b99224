"""Inputs under other names."""

from surgery.passes.tidy.input_names import InputNames

BEFORE = """
g (float[P,6] pixel_values, int64[I,3] image_grid_thw) => (float[P,6] y, int64[I,3] z)
{
  y = Neg(pixel_values)
  z = Neg(image_grid_thw)
}
"""


def make():
    return InputNames({"image_grid_thw": "grid_thw"})


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_near_miss(build, untouched):
    untouched(make(), build(BEFORE.replace("image_grid_thw", "image_grid")), "")
