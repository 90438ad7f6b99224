"""Calibration tokens as the decoder reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from surgery.calibrate.pieces import Array
from surgery.calibrate.sampler import Sampler, Tokens
from surgery.calibrate.sweep import Batch

LENGTH = 256
"""Tokens of a row of text."""
PICTURES, ANSWER = 8, 48
"""Prompts with a picture, and most tokens of an answer."""
PROBE = 32
"""Tokens of a probe row: short rows give many independent samples."""
MOST_ROWS = 64
"""Probe rows at most; one stream of them is kept for each piece."""


def batches_of(
    sampler: Sampler,
    tokens: int,
    inputs: Sequence[ir.Value],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Batch], Batch]:
    """Calibration tokens and probe rows as the decoder reads them.

    Pictures come first: the runtime that answers about them is released before text is sampled,
    so that one copy of the decoder is in memory at a time.

    Args:
        sampler: writes the tokens.
        tokens: how many of text; pictures come in addition.
        inputs: of the decoder graph; caches are empty.
        tell: called with the number of tokens sampled and in all.
    """
    rows = max(2, tokens // LENGTH)
    total, done = rows * LENGTH + PICTURES * ANSWER, 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(min(done, total), total)

    seen = []
    for part in sampler.pictures(PICTURES, ANSWER):
        seen.append(part)
        count(ANSWER)
    sampler.release()
    written = list(sampler.text(rows, LENGTH, count))
    batches: list[Batch] = [with_cache(sampler.embed(part), inputs) for part in (*written, *seen)]
    layers = sum((value.name or "").endswith(".key") for value in inputs)
    probes = min(MOST_ROWS, max(4, tokens // max(layers, 1) // PROBE))
    short = np.concatenate([part.ids for part in written]).reshape(-1, PROBE)
    picked = short[np.linspace(0, len(short) - 1, probes).astype(int)]
    places = np.broadcast_to(np.arange(PROBE), (3, len(picked), PROBE)).astype(np.int64)
    return batches, with_cache(sampler.embed(Tokens(picked, sampler.nothing(), places)), inputs)


def with_cache(feeds: dict[str, Array], inputs: Sequence[ir.Value]) -> dict[str, Array]:
    """Graph inputs with an empty cache."""
    rows = len(feeds["inputs_embeds"])
    for value in inputs:
        if (value.name or "").startswith("past_key_values.") and value.shape is not None:
            _, heads, _, width = (d if isinstance(d, int) else 0 for d in value.shape)
            feeds[value.name or ""] = np.zeros((rows, heads, 0, width), np.float32)
    return feeds
