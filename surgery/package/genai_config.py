"""Write genai_config.json, which describes a package to onnxruntime-genai 0.18.

The parser of onnxruntime-genai rejects unknown keys in every object. Several keys have defaults
that are wrong for these models and must therefore be written: the input `image_grid_thw` must be
configured under this name, and the token ids of pictures default to 0.
"""

from __future__ import annotations

from typing import Any

from surgery.base.errors import PackageError
from surgery.engine.facts import Facts

DECODER = "model.onnx"
PROCESSOR = "processor_config.json"

SEARCH_LENGTH = 4096
"""Default of `search.max_length`. The runtime allocates the key/value cache for this length."""

CPU_SESSIONS: dict[str, dict[str, Any]] = {
    "decoder": {"intra_op_num_threads": 0},
    "embedding": {"intra_op_num_threads": 1},
    "vision": {
        "intra_op_num_threads": 0,
        "session.disable_prepacking": "1",
        "optimization.disable_specified_optimizers": "ConstantFolding",
        "enable_cpu_mem_arena": False,
    },
}
"""Session options of CPU packages, chosen with two benchmarks.

`tests/bench/load.py` and `tests/bench/generate.py` ran on the shapes of a 4B model.
`intra_op_num_threads` 0 means one thread per physical core. Without it, the runtime uses half the
logical cores, which halves the speed on cores with one hardware thread. The embedding graph has one
thread, because a second thread pool would compete with that of the decoder. The vision graph runs
once per picture, and its options save memory between runs: weights are not prepacked (a second copy
that would save 5% of the time), constant folding does not store weights converted to float32, and
there is no arena for activations.
"""

SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""Settings copied from generation_config.json."""


def filenames(facts: Facts) -> dict[str, str]:
    """Return the file of each graph: qwen3vl-vision.onnx, qwen3vl-embedding.onnx, model.onnx."""
    family = facts.traits.runtime.replace("_", "")
    beside = {part: f"{family}-{part}.onnx" for part in ("vision", "embedding")}
    return {**beside, "decoder": DECODER}


def genai_config(facts: Facts) -> dict[str, Any]:
    """Return the whole configuration as a JSON object.

    The runtime passes an output `per_layer_inputs` of the embedding graph on to the decoder.
    Families with DeepStack use it for the DeepStack features.

    Raises:
        PackageError: the checkpoint names no token that ends an answer.
    """
    levels = {"per_layer_inputs": "per_layer_inputs"} if facts.levels else {}
    files = filenames(facts)
    ends = end_tokens(facts)
    provider = [dict(facts.target.options)] if facts.target.options else []
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": provider}
    sessions = CPU_SESSIONS if facts.target.options is None else {}
    length = facts.options.max_length
    search: dict[str, Any] = {
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": min(length, SEARCH_LENGTH),
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    search |= {k: facts.generation[k] for k in SAMPLING if facts.generation.get(k) is not None}
    config = facts.config
    return {
        "model": {
            "type": facts.traits.runtime,
            "vocab_size": int(facts.text["vocab_size"]),
            "context_length": length,
            "bos_token_id": first(facts, "bos_token_id", ends[0]),
            "pad_token_id": first(facts, "pad_token_id", ends[-1]),
            "eos_token_id": ends,
            "image_token_id": int(config["image_token_id"]),
            "video_token_id": int(config["video_token_id"]),
            "vision_start_token_id": int(config["vision_start_token_id"]),
            "decoder": {
                "filename": files["decoder"],
                "session_options": session | sessions.get("decoder", {}),
                "head_size": facts.head_dim,
                "hidden_size": int(facts.text["hidden_size"]),
                "num_attention_heads": facts.heads,
                "num_key_value_heads": facts.kv_heads,
                "num_hidden_layers": facts.layers,
                "inputs": {
                    "inputs_embeds": "inputs_embeds",
                    **levels,
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
            "embedding": {
                "filename": files["embedding"],
                "session_options": session | sessions.get("embedding", {}),
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds", **levels},
            },
            "vision": {
                "filename": files["vision"],
                "config_filename": PROCESSOR,
                "session_options": session | sessions.get("vision", {}),
                "spatial_merge_size": int(facts.vision["spatial_merge_size"]),
                "patch_size": int(facts.vision["patch_size"]),
                "tokens_per_second": float(facts.vision.get("tokens_per_second", 2)),
                "inputs": {"pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"},
                "outputs": {"image_features": "image_features"},
            },
        },
        "search": search,
    }


def end_tokens(facts: Facts) -> list[int]:
    """Return the ids of the tokens that end an answer.

    Raises:
        PackageError: the checkpoint names none.
    """
    found = facts.generation.get("eos_token_id", facts.text.get("eos_token_id"))
    if found is None:
        raise PackageError(
            f"{facts.checkpoint}: neither generation_config.json nor config.json has an "
            f"eos_token_id."
        )
    return [int(t) for t in found] if isinstance(found, list) else [int(found)]


def first(facts: Facts, name: str, default: int) -> int:
    """Return a token id from the first configuration that has it."""
    for part in (facts.generation, facts.text, facts.config):
        if isinstance(part.get(name), int):
            return int(part[name])
    return default
