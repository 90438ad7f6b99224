"""Calibration tokens from a file of the user's own text, pictures and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surgery.answer.questions import check_texts, paths, read_lines
from surgery.base.errors import UserError
from surgery.calibrate.sampler import Answered, Sampler, Tokens

FORM = '{"text": text} or {"image": path, "question": text, "answer": text}'
"""A line of the file; "image" (a path or a list of paths) and "answer" may be left out."""
SHORTEST = 2
"""Tokens of the shortest row that is used."""


@dataclass(frozen=True)
class Example:
    """A line of the file: a document, or a question with its pictures.

    Attributes:
        document: text without a template; "" for a question.
        question: what the user asks; "" for a document.
        pictures: in front of the question.
        answer: what the model is to have said; None where it shall write the answer itself.
    """

    document: str = ""
    question: str = ""
    pictures: tuple[Path, ...] = ()
    answer: str | None = None


def read_examples(path: Path) -> list[Example]:
    """The lines of a file.

    Raises:
        UserError: no such file, or a line is not an example.
    """
    return read_lines(path, example, "calibration example", FORM)


def example(folder: Path, found: dict[str, Any]) -> Example:
    """A line of a file in `folder`.

    Raises:
        KeyError, TypeError, ValueError: it is not an example.
    """
    if "text" in found:
        check_texts(text=found["text"])
        if not found["text"]:
            raise ValueError("text is empty")
        return Example(document=found["text"])
    check_texts(question=found["question"], **{k: found[k] for k in ("answer",) if k in found})
    return Example("", found["question"], paths(folder, found, "image"), found.get("answer"))


def digest(path: Path) -> str:
    """A digest of a file and of every picture that it names.

    Raises:
        UserError: a file cannot be read, or a line is not an example.
    """
    examples = read_examples(path)
    total = hashlib.sha256()
    for file in (path, *dict.fromkeys(p for one in examples for p in one.pictures)):
        try:
            total.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as e:
            raise UserError(f"{file}: cannot be read: {e.strerror}.") from e
    return total.hexdigest()


def documents(sampler: Sampler, examples: Sequence[Example], length: int) -> Iterator[Tokens]:
    """The documents, tokenized and cut into rows of `length` tokens; rests are rows of their own.

    Rows of one length come together, so that they run as one batch.
    """
    rows: dict[int, list[list[int]]] = {}
    for one in examples:
        ids = sampler.encode(one.document) if one.document else []
        for start in range(0, len(ids), length):
            row = ids[start : start + length]
            rows.setdefault(len(row), []).append(row)
    for size in sorted(rows, reverse=True):
        if size >= SHORTEST:
            yield from sampler.rows(np.array(rows[size], np.int64))


def conversations(sampler: Sampler, examples: Sequence[Example], steps: int) -> Iterator[Answered]:
    """The questions with their answers, as the chat template writes them.

    Args:
        sampler: not released yet.
        examples: those that are documents are passed over.
        steps: most tokens of an answer that the model writes.
    """
    for number, one in enumerate(examples):
        if one.question:
            yield sampler.conversation(one.question, one.pictures, one.answer, steps, number)
