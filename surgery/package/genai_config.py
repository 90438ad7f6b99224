"""Write genai_config.json, which describes a package to onnxruntime-genai 0.18.

The parser of onnxruntime-genai rejects unknown keys in every object. Several keys have defaults
that are wrong for these models and must therefore be written: the input `image_grid_thw` must be
configured under this name, and the token ids of pictures default to 0.
"""

from __future__ import annotations

from typing import Any

from surgery.base.errors import PackageError
from surgery.base.files import Fields
from surgery.base.tokens import misnamed
from surgery.engine.facts import Facts
from surgery.package.search import search
from surgery.package.token_ids import TokenIds

DECODER = "model.onnx"
PROCESSOR = "processor_config.json"

NO_PREPACKING = "session.disable_prepacking"
"""With 8-bit weights this option would unpack each in each run, and multiply in float32."""

CPU_SESSIONS: dict[str, dict[str, Any]] = {
    "decoder": {"intra_op_num_threads": 0},
    "embedding": {"intra_op_num_threads": 1, "enable_cpu_mem_arena": False},
    "vision": {
        "intra_op_num_threads": 0,
        NO_PREPACKING: "1",
        "optimization.disable_specified_optimizers": "ConstantFolding;SkipLayerNormFusion",
    },
}
"""Session options of CPU packages, chosen with benchmarks.

`tests/bench/load.py` and `tests/bench/generate.py` ran on the shapes of a 4B model.
`intra_op_num_threads` 0 means one thread per physical core. Without it, the runtime uses half the
logical cores, which halves the speed on cores with one hardware thread. The embedding graph has one
thread, because a second thread pool would compete with that of the decoder, and no arena, which
would hold the memory of a long prompt's embeddings while the decoder reads it
(`tests/bench/video_memory.py`). The vision graph runs once per picture, or per run of equal ones,
and its options save memory between runs: constant folding does not store weights converted to
float32, and they are not prepacked (both together would be a second copy of 1.6 GB at the 2B shape
that saves a fifth to a quarter of the time). The runtime does not fuse sums with the norms behind
them either: see `Facts.fused_skips`.
"""

CPU_RUNS: dict[str, dict[str, str]] = {
    "vision": {"memory.enable_memory_arena_shrinkage": "cpu:0"},
}
"""Options of each run of a graph in CPU packages.

The arena of the vision graph is given back at the end of a picture. Without an arena, activations
above 32 MB would be asked of the system one by one, and each of their pages cleared; and those
below would stay with the C library. At the 2B shape `tests/bench/first_token.py`, which also reads
text and holds a conversation, ends with 3.2 GB without an arena and with 2.8 GB with this one.
"""


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
    ids = token_ids(facts)
    length, vocabulary = facts.options.max_length, int(facts.text["vocab_size"])
    config = facts.config
    return {
        "model": {
            "type": facts.traits.runtime,
            "vocab_size": vocabulary,
            "context_length": length,
            "bos_token_id": ids.start,
            "pad_token_id": ids.padding()[0],
            "eos_token_id": ids.ends,
            "image_token_id": int(config["image_token_id"]),
            "video_token_id": int(config["video_token_id"]),
            "vision_start_token_id": int(config["vision_start_token_id"]),
            "decoder": {
                "filename": files["decoder"],
                "session_options": session_options(facts, "decoder"),
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
                "session_options": session_options(facts, "embedding"),
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds", **levels},
            },
            "vision": {
                "filename": files["vision"],
                "config_filename": PROCESSOR,
                "session_options": session_options(facts, "vision"),
                **run_options(facts, "vision"),
                "spatial_merge_size": int(facts.vision["spatial_merge_size"]),
                "patch_size": int(facts.vision["patch_size"]),
                "tokens_per_second": float(facts.vision.get("tokens_per_second", 2)),
                "inputs": {"pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"},
                "outputs": {"image_features": "image_features"},
            },
        },
        "search": search(length, facts.generation, vocabulary),
    }


def session_options(facts: Facts, part: str) -> dict[str, Any]:
    """The provider that a graph runs on, and on a CPU the options of its session.

    An empty list of providers is the CPU, also where another graph has one.
    """
    provider = facts.of(part).target.options
    own = CPU_SESSIONS[part].copy() if provider is None else {}
    if part == "vision" and facts.quantized_tower and provider is None:
        own.pop(NO_PREPACKING)
    providers = [] if provider is None else [dict(provider)]
    return {"log_id": "onnxruntime-genai", "provider_options": providers} | own


def run_options(facts: Facts, part: str) -> dict[str, dict[str, str]]:
    """The entry for options of each run of a graph, where it has some."""
    own = CPU_RUNS[part] if facts.of(part).target.options is None else {}
    return {"run_options": dict(own)} if own else {}


def token_ids(facts: Facts) -> TokenIds:
    """Where the checkpoint names its tokens."""
    file, config = facts.checkpoint / "config.json", facts.config
    text = Fields(file, facts.text, PackageError, "text_config.")
    outer = Fields(file, config, PackageError)
    return TokenIds(facts.generation, text, outer, facts.tokens, int(facts.text["vocab_size"]))


def check_tokens(facts: Facts) -> None:
    """Refuse ids of pictures and of ends that are not the tokenizer's.

    Raises:
        PackageError: the message names each.
    """
    wrong = [*misnamed(facts.config, facts.tokens), *token_ids(facts).unknown_ends()]
    if wrong:
        raise PackageError(f"{facts.checkpoint}: {'; '.join(wrong)}.")
