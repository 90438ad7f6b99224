"""Write what transformers.js 4.3 reads beside the graphs: configurations and the tokenizer.

The library chooses files by name. `onnx/decoder_model_merged_q4.onnx` is the decoder with dtype
q4, and `onnx/decoder_model_merged_q4.onnx_data` its weights, `…_data_1` those that the first file
has no room for. A browser fetches as many of them as config.json says.

Paths of the library's sources in this module are relative to `src/` of @huggingface/transformers
4.3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.base.errors import PackageError
from surgery.base.files import MANIFEST_BYTES, read_json, write_json
from surgery.engine.facts import Facts
from surgery.package.processor_config import agreed
from surgery.package.tokenizer import copy_tokenizer

GRAPHS = {
    "vision": "vision_encoder",
    "embedding": "embed_tokens",
    "decoder": "decoder_model_merged",
}
"""Names of the three graphs (models/session_config.js:57)."""
FOLDER = "onnx"
DATA = "_data"
"""What follows a graph's name in that of its data file (utils/model-loader.js:30)."""
LARGEST = 2_000_000_000
"""Bytes of a data file, unless one weight has more: a browser holds each file in one buffer."""
SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
"""Numbers of the decoder that the library reads in config.json itself, or in its text_config, by
the family (configs.js:84, 114)."""


BICUBIC = 3
"""The resampling of Qwen-VL's image processors."""
PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_vl_moe": "Qwen3VLProcessor",
}
"""Processors of the library by family."""


def dtype(facts: Facts) -> str:
    """The library's word for the precision of the package."""
    half = facts.text_dtype == ir.DataType.FLOAT16
    if facts.quantized:
        return "q4f16" if half else "q4"
    return "fp16" if half else "fp32"


def filenames(facts: Facts) -> dict[str, str]:
    """The file of each graph, in the folder `onnx`."""
    suffix = "" if dtype(facts) == "fp32" else f"_{dtype(facts)}"
    return {part: f"{name}{suffix}.onnx" for part, name in GRAPHS.items()}


def model_config(facts: Facts, data: Mapping[str, int]) -> dict[str, Any]:
    """config.json: the checkpoint's with every default filled in, and what the library adds.

    Args:
        facts: the checkpoint.
        data: number of data files by the name of the graph's file.
    """
    lifted = {key: facts.text[key] for key in SIZES}
    own = {"dtype": dtype(facts), "use_external_data_format": dict(data)}
    return lifted | facts.config | {"transformers.js_config": own}


def preprocessor_config(facts: Facts) -> dict[str, Any]:
    """preprocessor_config.json: the checkpoint's, with every step written out.

    Without `do_normalize`, which checkpoints may leave out, the library would not normalize
    (image_processors_utils.js:586); without the sizes of a patch it would make no patches.

    Raises:
        PackageError: a number is out of range or not that of config.json.
    """
    p = facts.preprocessor
    least, most = facts.pixels
    return {
        **p.values,
        "processor_class": PROCESSORS[facts.config["model_type"]],
        "image_processor_type": "Qwen2VLImageProcessor",
        **{name: p.flag(name, True) for name in ("do_resize", "do_rescale", "do_normalize")},
        "do_convert_rgb": p.flag("do_convert_rgb", True),
        "rescale_factor": p.number("rescale_factor", 1e-9, 1, 1 / 255),
        "image_mean": p.numbers("image_mean", -256, 256, 3),
        "image_std": p.numbers("image_std", 1e-6, 256, 3),
        "resample": p.integer("resample", 0, 5, BICUBIC),
        "size": {"shortest_edge": least, "longest_edge": most},
        "min_pixels": least,
        "max_pixels": most,
        "patch_size": agreed(facts, "patch_size", "patch_size"),
        "temporal_patch_size": agreed(facts, "temporal_patch_size", "temporal_patch_size"),
        "merge_size": agreed(facts, "merge_size", "spatial_merge_size"),
    }


def write_configurations(facts: Facts, folder: Path, data: Mapping[str, int]) -> str:
    """Write everything but the graphs and the README.

    The chat template goes into tokenizer_config.json: for these processors the library does not
    look for a file of its own (processing_utils.js:46, 170).

    Args:
        facts: the checkpoint and the options.
        folder: the package.
        data: number of data files by the name of the graph's file.

    Returns:
        A line for the user about the tokenizer; "" if there is nothing to say.

    Raises:
        PackageError: a file of the checkpoint is not what it must be.
    """
    copied = copy_tokenizer(facts.tokens, folder)
    template, path = facts.tokens.template, folder / "tokenizer_config.json"
    if template is not None:
        config = read_json(path, PackageError, limit=MANIFEST_BYTES)
        write_json(config | {"chat_template": template}, path)
    write_json(model_config(facts, data), folder / "config.json")
    write_json(preprocessor_config(facts), folder / "preprocessor_config.json")
    if not (folder / "generation_config.json").exists():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        named = {key: facts.text.get(key, facts.config.get(key)) for key in keys}
        write_json(
            {k: v for k, v in named.items() if v is not None}, folder / "generation_config.json"
        )
    return copied
