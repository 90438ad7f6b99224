"""The ranges of keys and values, which an 8-bit cache needs beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from surgery.calibrate.batches import sampled
from surgery.calibrate.pieces import Array
from surgery.calibrate.sampler import Sampler, Tokens

TOKENS = 2048
"""Tokens of text; pictures come in addition."""
MARGIN = 1.25
"""Room above the largest number seen: other texts exceed it, and what is outside is clipped."""
PAST, PRESENT = "past_key_values", "present"


def cache_ranges(
    sampler: Sampler, tell: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, npt.NDArray[np.float32]]:
    """Largest absolute keys and values on tokens that the model itself writes, with a margin.

    A rotary embedding turns channels c and c + D/2 of a key by an angle that grows with the
    position, so one of them may come to hold the length of both: each has the range of that
    length, and keys far behind those that were sampled stay inside.

    Args:
        sampler: of a package with a float cache.
        tell: called with the number of tokens sampled and in all.

    Returns:
        Ranges [K, D] by the name of the graph input that holds the past.
    """
    texts, answers = sampled(sampler, TOKENS, tell)
    session = sampler.session("decoder")
    pasts = {
        port.name: np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
        for port in session.get_inputs()
        if port.name.startswith(PAST)
    }
    found = {
        name: np.zeros((empty.shape[1], empty.shape[3]), np.float32)
        for name, empty in pasts.items()
    }
    presents = [name.replace(PAST, PRESENT) for name in pasts]
    for row in (row for part in (*texts, *answers) for row in rows(part)):
        filled = session.run(presents, {**sampler.embed(row), **pasts})
        for name, numbers in zip(pasts, filled, strict=True):
            largest = lengths(numbers) if name.endswith(".key") else np.abs(numbers)
            found[name] = np.maximum(found[name], largest.max((0, 2)))
    return {name: np.float32(MARGIN) * largest for name, largest in found.items()}


def rows(tokens: Tokens) -> Iterator[Tokens]:
    """Rows one by one, so that the cache of one is in memory; a picture is in a row by itself."""
    for i in range(len(tokens.ids)):
        yield Tokens(tokens.ids[i : i + 1], tokens.features, tokens.places[:, i : i + 1])


def lengths(keys: Array) -> Array:
    """Lengths of the pairs of channels that turn together, `[..., D]`, each pair's twice."""
    half = keys.shape[-1] // 2
    length = np.hypot(keys[..., :half], keys[..., half:])
    return np.concatenate([length, length], -1)
