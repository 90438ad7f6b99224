"""A text-only Qwen3 checkpoint with the decoder's weights of a Qwen3-VL one.

For tools that know Qwen3 but not Qwen3-VL: the matrices and the layers are the same, only rotary
positions have one axis instead of three.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

PREFIX = "model.language_model."


def make_twin(source: Path, out: Path) -> None:
    """Write the checkpoint, a shard for each of the source's.

    Args:
        source: a Qwen3-VL checkpoint with `config.json` and safetensors shards.
        out: folder to write, new.
    """
    out.mkdir(parents=True)
    whole = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = whole["text_config"]
    rope = dict(text.pop("rope_parameters", None) or text.pop("rope_scaling", None) or {})
    text.pop("rope_scaling", None)
    theta = rope.get("rope_theta", text.get("rope_theta"))
    config = {
        **text,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_theta": theta,
        "tie_word_embeddings": whole.get("tie_word_embeddings", False),
        "torch_dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "vocab.json", "merges.txt", "chat_template.jinja"):  # fmt: skip
        if (source / name).exists():
            shutil.copy(source / name, out / name)
    index = {}
    for shard in sorted(source.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            names = [n for n in file.keys() if n.startswith((PREFIX, "lm_head."))]  # noqa: SIM118
            tensors = {n.replace(PREFIX, "model."): file.get_tensor(n) for n in names}
        if tensors:
            save_file(tensors, out / shard.name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, shard.name)
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
