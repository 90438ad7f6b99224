"""Calibration tokens as the decoder reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.calibrate.examples import Example, conversations, documents
from surgery.calibrate.pieces import Array
from surgery.calibrate.sampler import Sampler, Tokens
from surgery.calibrate.sweep import Batch

LENGTH = 256
"""Tokens of a row of text."""
PICTURES, ANSWER = 8, 48
"""Prompts with a picture, and most tokens of an answer."""
PROBE = 32
"""Tokens of a probe row: short rows give many independent samples."""
FEWEST_ROWS, MOST_ROWS = 4, 64
"""Probe rows at least and at most; one stream of them is kept for each piece."""


def batches_of(
    sampler: Sampler,
    tokens: int,
    inputs: Sequence[ir.Value],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Batch], Batch]:
    """Calibration tokens and probe rows as the decoder reads them.

    Args:
        sampler: writes the tokens.
        tokens: how many of text; pictures come in addition.
        inputs: of the decoder graph; caches are empty.
        tell: called with the number of tokens sampled and in all.
    """
    return assembled(sampler, *sampled(sampler, tokens, tell), inputs)


def sampled(
    sampler: Sampler, tokens: int, tell: Callable[[int, int], None]
) -> tuple[list[Tokens], list[Tokens]]:
    """Rows of text, two at least, and prompts about pictures with answers.

    Pictures come first: the runtime that answers about them is released before anything else is
    loaded, so that one copy of the decoder is in memory at a time.

    Args:
        sampler: writes the tokens.
        tokens: how many of text; pictures come in addition.
        tell: called with the number of tokens sampled and in all.
    """
    rows = max(2, tokens // LENGTH)
    total, done = rows * LENGTH + PICTURES * ANSWER, 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(min(done, total), total)

    answers = []
    for part in sampler.pictures(PICTURES, ANSWER):
        answers.append(part)
        count(ANSWER)
    sampler.release()
    seen = list(sampler.encoded(answers))
    return list(sampler.text(rows, LENGTH, count)), seen


def batches_from(
    sampler: Sampler,
    examples: Sequence[Example],
    inputs: Sequence[ir.Value],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Batch], Batch]:
    """The same from the user's own text, pictures and answers.

    Args:
        sampler: tokenizes, encodes pictures and writes the answers that are left out.
        examples: of the user.
        inputs: of the decoder graph.
        tell: called with the number of examples done and in all.

    Raises:
        UserError: a picture cannot be read, a prompt is too long, or there is too little text to
            estimate losses from.
    """
    written = list(documents(sampler, examples, LENGTH))
    answers = []
    for part in conversations(sampler, examples, ANSWER):
        answers.append(part)
        tell(len(answers), len(examples))
    sampler.release()
    return assembled(sampler, written, list(sampler.encoded(answers)), inputs)


def assembled(
    sampler: Sampler, texts: Sequence[Tokens], answers: Sequence[Tokens], inputs: Sequence[ir.Value]
) -> tuple[list[Batch], Batch]:
    """Rows as the decoder reads them, and probe rows cut from text, or from answers without any.

    Raises:
        UserError: neither has enough of it.
    """
    parts = [*texts, *answers]
    layers = sum((value.name or "").endswith(".key") for value in inputs)
    for source in (texts, answers):
        short = [row for part in source for row in sections(part.ids, sampler.marks)]
        if len(short) >= FEWEST_ROWS:
            break
    else:
        raise UserError(
            f"--calibrate: needs {FEWEST_ROWS} runs of {PROBE} tokens of text, or of questions and "
            f"answers, without a picture; found {len(short)}. Add text or longer answers."
        )
    tokens = sum(part.ids.size for part in source)
    wanted = min(MOST_ROWS, max(FEWEST_ROWS, tokens // max(layers, 1) // PROBE), len(short))
    picked = np.stack(short)[np.linspace(0, len(short) - 1, wanted).astype(int)]
    (probe,) = sampler.rows(picked, len(picked))
    batches: list[Batch] = [with_cache(sampler.embed(part), inputs) for part in parts]
    return batches, with_cache(sampler.embed(probe), inputs)


def sections(ids: npt.NDArray[np.int64], marks: Sequence[int]) -> Iterator[npt.NDArray[np.int64]]:
    """Runs of `PROBE` tokens at the end of each row [B, S] that hold no picture."""
    for row in ids:
        for start in range(len(row) % PROBE, len(row), PROBE):
            section = row[start : start + PROBE]
            if not np.isin(section, marks).any():
                yield section


def with_cache(feeds: dict[str, Array], inputs: Sequence[ir.Value]) -> dict[str, Array]:
    """Graph inputs with an empty cache."""
    rows = len(feeds["inputs_embeds"])
    for value in inputs:
        if (value.name or "").startswith("past_key_values.") and value.shape is not None:
            _, heads, _, width = (d if isinstance(d, int) else 0 for d in value.shape)
            feeds[value.name or ""] = np.zeros((rows, heads, 0, width), np.float32)
    return feeds
