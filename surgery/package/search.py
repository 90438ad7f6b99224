"""The object `search` of genai_config.json: how the next token is chosen, and how many."""

from __future__ import annotations

from typing import Any

from surgery.base.files import Fields

SEARCH_LENGTH = 4096
"""Default of `search.max_length`. The runtime allocates the key/value cache for this length."""
LARGEST_TEMPERATURE = 1000.0
LARGEST_PENALTY = 100.0


def search(length: int, generation: Fields, size: int, shared: bool = True) -> dict[str, Any]:
    """Return the object.

    Args:
        length: context length of the package.
        generation: generation_config.json.
        size: number of tokens.
        shared: whether past and present keys and values are one buffer.

    Raises:
        PackageError: generation_config.json has a value of another type, or out of range.
    """
    return {
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": min(length, SEARCH_LENGTH),
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    } | sampling(generation, size)


def sampling(given: Fields, size: int) -> dict[str, Any]:
    """How the next token is chosen, as generation_config.json has it.

    Raises:
        PackageError: a value of another type, or out of range.
    """
    found: dict[str, Any] = {}
    if "do_sample" in given:
        found["do_sample"] = given.flag("do_sample")
    if "temperature" in given:
        found["temperature"] = given.number("temperature", 0, LARGEST_TEMPERATURE)
    if "top_k" in given:  # transformers takes all tokens where there are fewer
        found["top_k"] = min(given.integer("top_k", 0, (1 << 31) - 1), size)
    if "top_p" in given:
        found["top_p"] = given.number("top_p", 0, 1)
    if "repetition_penalty" in given:
        found["repetition_penalty"] = given.number("repetition_penalty", 0, LARGEST_PENALTY)
    return found
