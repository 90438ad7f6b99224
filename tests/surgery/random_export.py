"""A raw export of a small Qwen3-VL with random weights: `python random_export.py DIRECTORY`.

A process of its own, so that torch stays out of the tests of the passes. The head is not tied, the
DeepStack layers lie at odd indexes and are fewer than the decoder's layers, and no two sizes are
equal, so that one cannot stand in for another.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from export_min import export, families, open_checkpoint
from export_min.trace import expected_weights, resolved_config
from surgery.base.demo import DEMO

ROOT = Path(__file__).resolve().parents[2]

TEXT = {
    "hidden_size": 64,
    "head_dim": 32,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
}
VISION = {
    "deepstack_visual_indexes": [1, 3],
    "depth": 4,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 3,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
}


def make(folder: Path) -> None:
    """Write `folder/checkpoint` and export it to `folder/raw`."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    for file in DEMO.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, checkpoint / file.name)
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= TEXT
    config["vision_config"] |= VISION
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(3)
    save_file({"x": torch.zeros(1)}, checkpoint / "model.safetensors")  # opened, then replaced
    family = families.load("qwen3_vl")
    shapes = expected_weights(family, resolved_config(open_checkpoint(checkpoint), family))
    weights = {}
    for name, shape in shapes.items():
        weights[name] = (torch.randn(shape) * 0.12).bfloat16()
        if "norm" in name and name.endswith("weight"):
            weights[name] = (1 + weights[name].float()).bfloat16()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    export(checkpoint, folder / "raw")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
