"""Positions on the three axes are those of transformers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from surgery.base.demo import DEMO
from surgery.calibrate.positions import positions

GRIDS = [
    [],
    [(1, 4, 6)],
    [(1, 2, 2), (1, 8, 4)],
    [(1, 6, 6), (1, 2, 10), (1, 12, 4)],
]


@pytest.fixture(scope="module")
def model():
    """Qwen3-VL of the demo's configuration, without weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = transformers.AutoConfig.from_pretrained(DEMO)
    with torch.device("meta"):
        return transformers.Qwen3VLModel(config)


@pytest.mark.parametrize("grids", GRIDS, ids=lambda grids: f"{len(grids)} pictures")
@pytest.mark.parametrize("seed", [0, 1])
def test_like_transformers(model, grids, seed):
    import torch

    config = json.loads((DEMO / "config.json").read_text())
    image, start = config["image_token_id"], config["vision_start_token_id"]
    merge = config["vision_config"]["spatial_merge_size"]
    rng = np.random.default_rng(seed)
    ids = list(rng.integers(5, 50, rng.integers(1, 9)))
    for _, h, w in grids:
        ids += [start, *[image] * (h * w // merge**2), *rng.integers(5, 50, rng.integers(1, 5))]
    expected, _ = model.get_rope_index(
        torch.tensor([ids]),
        mm_token_type_ids=torch.tensor([[int(token == image) for token in ids]]),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    found = positions([int(token) for token in ids], image, grids, merge)
    np.testing.assert_array_equal(found, expected[:, 0].numpy())
