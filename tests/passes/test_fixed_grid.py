"""One picture size."""

import numpy as np

from surgery.passes.vision.fixed_grid import FixedGrid

BEFORE = """
g (float[patches,6] pixel_values, int64[images,3] image_grid_thw)
=> (float[patches,6] y, int64[images] frames) <int64 nil = {0}, int64[1] last = {-1}> {
  frames = Gather<axis = 1>(image_grid_thw, nil)
  sizes = ReduceProd<keepdims = 0>(image_grid_thw, last)
  sizes32 = Cast<to = 1>(sizes)
  most = ReduceMax<keepdims = 0>(sizes32)
  y = Mul(pixel_values, most)
}
"""
GRID = (1, 4, 6)


def make():
    return FixedGrid(GRID)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_near_miss(build, untouched):
    """Another input is none."""
    untouched(make(), build(BEFORE.replace("image_grid_thw", "video_grid_thw")), "")


def test_numbers(build, same_numbers, rng):
    """For the one grid, bit for bit; the input is fed and not read."""
    pixels = rng.standard_normal((24, 6)).astype(np.float32)
    model = build(BEFORE)
    grid = np.array([GRID])
    same_numbers(make(), model, [{"pixel_values": pixels, "image_grid_thw": grid}])
    assert [str(v.shape) for v in model.graph.inputs] == ["[24,6]", "[1,3]"]
    assert [str(v.shape) for v in model.graph.outputs] == ["[24,6]", "[1]"]
