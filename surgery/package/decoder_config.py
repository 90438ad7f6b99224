"""genai_config.json of a decoder that takes tokens, from any exporter."""

from __future__ import annotations

from typing import Any

from surgery.engine.options import Options
from surgery.engine.targets import TARGETS
from surgery.package.decoder_graph import DecoderGraph, Unfit
from surgery.package.genai_config import CPU_SESSIONS
from surgery.package.language_model import CONFIG, GENERATION, TOKENIZER, LanguageModel
from surgery.package.search import search
from surgery.package.token_ids import TokenIds

TYPES = frozenset(
    {
        *("chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "granitemoehybrid"),
        *("internlm2", "llama", "mistral", "nemotron", "olmo", "phi", "phi3", "phimoe", "qwen2"),
        *("qwen3", "smollm3"),
    }
)
"""Types of onnxruntime-genai 0.18 that are called as Hugging Face calls them, and that it drives as
decoders of tokens with one cache for each layer."""
PLAIN = "decoder"
"""The runtime's type for any other such decoder."""


def decoder_config(
    filename: str, graph: DecoderGraph, model: LanguageModel, options: Options
) -> dict[str, Any]:
    """Return the whole configuration as a JSON object.

    Sizes and names are the graph's; what it does not show is the configuration's.

    Args:
        filename: of the graph.
        graph: what the graph shows.
        model: the configuration of its model.
        options: execution provider, and rows of the rotary tables.

    Raises:
        Unfit: a file or a value that the runtime needs is missing, or the configuration is
            that of another graph.
        PackageError: a value of the configuration is not what it must be.
    """
    ids = token_ids(graph, model)
    text, target = model.text, TARGETS[options.execution_provider]
    length = model.length(options.max_length)
    session: dict[str, Any] = {
        "log_id": "onnxruntime-genai",
        "provider_options": [dict(target.options)] if target.options else [],
    }
    heads = text.integer("num_attention_heads", 1, 1 << 20, graph.kv_heads)
    return {
        "model": {
            "type": runtime_type(model),
            "vocab_size": graph.vocabulary,
            "context_length": length,
            "bos_token_id": ids.start,
            "pad_token_id": ids.padding()[0],
            "eos_token_id": ids.ends,
            "decoder": {
                "filename": filename,
                "session_options": session
                | (CPU_SESSIONS["decoder"] if target.options is None else {}),
                "head_size": graph.width,
                "hidden_size": text.integer("hidden_size", 1, 1 << 31, heads * graph.width),
                "num_attention_heads": heads,
                "num_key_value_heads": graph.kv_heads,
                "num_hidden_layers": graph.layers,
                "inputs": graph.inputs,
                "outputs": graph.outputs,
            },
        },
        "search": search(length, model.generation, graph.vocabulary, graph.shared),
    }


def runtime_type(model: LanguageModel) -> str:
    """`model.type`: the model's own where the runtime knows it."""
    return model.kind if model.kind in TYPES else PLAIN


def token_ids(graph: DecoderGraph, model: LanguageModel) -> TokenIds:
    """Where the model's tokens are named.

    Raises:
        Unfit: they are not, or the configuration has another number of layers than the graph.
    """
    key, text = "num_hidden_layers", model.text
    layers = text.integer(key, 1, 1 << 20, graph.layers)
    if layers != graph.layers:
        raise Unfit(f"{CONFIG} has {layers} layers ({key}), the graph caches {graph.layers}")
    if model.tokens is None:
        raise Unfit(f"no {TOKENIZER} beside {CONFIG}")
    if "eos_token_id" not in model.generation and "eos_token_id" not in text:
        raise Unfit(f"neither {GENERATION} nor {CONFIG} names an eos_token_id")
    return model.ids(model.tokens, graph.vocabulary)
