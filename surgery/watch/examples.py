"""Inputs for `--check-steps`, with grids, batch sizes and cache lengths that the export never used.

Passes change the inputs of a graph. An example therefore holds an array for every input of the raw
graph and of the finished one: for the decoder, DeepStack features as rows of image tokens, spread
over the sequence, and in the columns behind the embeddings. The arrays are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from surgery.engine.facts import Facts

Array = npt.NDArray[np.generic]

GRIDS = (((1, 2, 3),), ((1, 4, 2), (2, 3, 3), (1, 1, 5)), ((2, 2, 4), (2, 2, 4)))
"""Frames, rows and columns of the pictures of each call. Rows and columns count image tokens."""

CALLS = (
    # rows, new positions, cached positions. GroupQueryAttention of onnxruntime takes several new
    # positions after cached ones only with a batch of one row.
    (1, 5, 7),
    (3, 6, 0),
    (2, 1, 4),
    (1, 1, 0),
    (2, 21, 0),  # long enough for the branch that `long_input` makes
)


@dataclass(frozen=True)
class Example:
    """The inputs of one call of a graph.

    Attributes:
        name: short description.
        feeds: arrays by input name.
        valid: for a decoder, the attention mask `[B, T]`. Only results at its ones are compared.
    """

    name: str
    feeds: dict[str, Array]
    valid: Array | None = field(default=None)


def examples(graph: str, model: ir.Model, facts: Facts) -> list[Example]:
    """Return the examples for a raw graph and for its versions after each pass."""
    makers = {"vision": vision, "embedding": embedding, "decoder": decoder}
    return list(makers[graph](model, facts))


def vision(model: ir.Model, facts: Facts) -> Iterator[Example]:
    """Yield pictures and videos of several sizes, or of the one size of a fixed grid."""
    merge = int(facts.vision["spatial_merge_size"])
    width = sizes(model)["pixel_values"][1]
    calls = [[(t, h * merge, w * merge) for t, h, w in grids] for grids in GRIDS]
    for i, grids in enumerate(calls if facts.grid is None else [[facts.grid]]):
        rng = np.random.default_rng(i)
        grid = np.array(grids, np.int64)
        patches = int(grid.prod(-1).sum())
        pixels = rng.standard_normal((patches, width), np.float32)
        name = ", ".join("x".join(map(str, row)) for row in grids)
        feeds: dict[str, Array] = {"pixel_values": pixels, "image_grid_thw": grid, "grid_thw": grid}
        yield Example(f"grids {name}", feeds)


def embedding(model: ir.Model, facts: Facts) -> Iterator[Example]:
    """Yield token ids with and without image and video tokens."""
    width = sizes(model)["image_features"][1] * (1 + facts.levels)
    image, video = (int(facts.config[f"{kind}_token_id"]) for kind in ("image", "video"))
    for i, (rows, length, count) in enumerate(((1, 7, 4), (3, 5, 6), (2, 3, 0))):
        rng = np.random.default_rng(100 + i)
        ids = rng.integers(0, min(image, video), (rows, length))
        places = rng.choice(rows * length, count, replace=False)
        ids.flat[places] = rng.choice((image, video), count)
        features = rng.standard_normal((count, width), np.float32)
        name = f"{rows} rows of {length} tokens, {count} of them visual"
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "image_features": features,
            "visual_pos_masks": np.isin(ids, (image, video)),
        }
        yield Example(name, feeds)


def decoder(model: ir.Model, facts: Facts) -> Iterator[Example]:
    """Yield prompts, with some rows padded on the right, and single tokens after a cache."""
    shapes = sizes(model)
    width, levels = shapes["inputs_embeds"][2], shapes["deepstack_features"][0]
    for i, (rows, new, past) in enumerate(CALLS):
        rng = np.random.default_rng(200 + i)
        mask = np.ones((rows, past + new), np.int64)
        for row in range(1, rows if new > 1 else 0):
            mask[row, past + new - row :] = 0
        visual = (rng.random((rows, new)) < 0.4) & (new > 1)
        features = rng.standard_normal((levels, int(visual.sum()), width), np.float32)
        text = np.arange(past, past + new) + np.zeros((3, rows, new), np.int64)
        text = np.minimum(text, mask.sum(-1)[:, None] - 1)  # padding has no position of its own
        embeds = rng.standard_normal((rows, new, width), np.float32)
        levelled = spread(features, visual)
        feeds: dict[str, Array] = {
            "inputs_embeds": np.concatenate([embeds, levelled], -1),
            "attention_mask": mask,
            "position_ids": np.maximum(text - visual * rng.integers(0, 5, (3, rows, new)), 0),
            "visual_pos_masks": visual,
            "deepstack_features": features,
            "per_layer_inputs": levelled,
        }
        for name, shape in shapes.items():
            if name.startswith("past_key_values."):
                size = (rows, shape[1], past, shape[3])
                feeds[name] = rng.standard_normal(size, np.float32)
        yield Example(f"{rows} rows, {new} new, {past} cached", feeds, mask)


def spread(features: Array, places: Array) -> Array:
    """Spread features `[D, M, H]` over the sequence, `[B, S, D * H]`, with zeros elsewhere."""
    levels, tokens, width = features.shape
    out = np.zeros((*places.shape, levels * width), np.float32)
    out[places.astype(bool)] = np.moveaxis(features, 0, 1).reshape(tokens, levels * width)
    return out


class Sizes(dict[str, tuple[int, ...]]):
    """Shapes by input name. An input that the graph lacks has a shape of zeros."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input that the graph lacks."""
        return (0,) * 4


def sizes(model: ir.Model) -> Sizes:
    """Return the shape of each input, with 0 for dynamic dimensions."""
    return Sizes(
        (v.name or "", tuple(d if isinstance(d, int) else 0 for d in v.shape or ()))
        for v in model.graph.inputs
    )
