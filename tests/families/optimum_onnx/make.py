"""Export tiny models with optimum-onnx and keep the graphs, not the weights.

In an environment of its own, since optimum-onnx wants an older transformers:

    pip install torch==2.13.0 optimum-onnx==0.1.0 transformers==4.57.1
    python tests/families/optimum_onnx/make.py

Each graph is what `optimum-cli export onnx` writes. Weights of more than `KEPT` bytes are cut out
of the files; `weights.py` draws others of the same shape, by name.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import torch
import transformers as tf
from optimum.exporters.onnx import onnx_export_from_model

HERE = Path(__file__).parent
KEPT = 4096
LAYERS, VOCABULARY = 2, 512
SMALL = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
PICTURE = {"num_hidden_layers": LAYERS, "image_size": 32, "patch_size": 8}


def text(heads: int, kv_heads: int, width: int, **sizes: object) -> dict[str, object]:
    """Sizes of a decoder."""
    return {**SMALL, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "hidden_size": heads * width, "intermediate_size": 2 * width + 64, **sizes}  # fmt: skip


def picture(heads: int, width: int, **sizes: object) -> dict[str, object]:
    """Sizes of a tower."""
    return {**PICTURE, "num_attention_heads": heads, "hidden_size": heads * width,
            "intermediate_size": 2 * width, **sizes}  # fmt: skip


MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", text(4, 2, 64)),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", text(4, 2, 128)),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", text(4, 2, 128, head_dim=128)),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", text(2, 1, 256, head_dim=256)),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", text(4, 4, 96)),
    "vit": ("ViTConfig", "ViTModel", picture(4, 80)),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", picture(4, 64)),
}


def main() -> None:
    """Write every graph."""
    for name, (config, cls, sizes) in MODELS.items():
        torch.manual_seed(0)
        model = getattr(tf, cls)(getattr(tf, config)(**sizes)).eval()
        task = "text-generation-with-past" if cls.endswith("CausalLM") else "feature-extraction"
        with tempfile.TemporaryDirectory() as folder:
            try:
                onnx_export_from_model(
                    model, folder, task=task, do_validation=False, no_post_process=False
                )
                kept = cut(onnx.load(Path(folder) / "model.onnx"))
            except Exception as e:
                print(name, type(e), e)
                continue
        onnx.save(kept, HERE / f"{name}.onnx")
        print(name, len(kept.graph.node), "nodes")


def cut(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let large weights lie in a file that is drawn later."""
    offset = 0
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or array.nbytes <= KEPT:
            continue
        print("   cut", tensor.name, array.shape)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (
            ("location", "weights.data"),
            ("offset", offset),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        offset += array.nbytes
    return model


if __name__ == "__main__":
    main()
