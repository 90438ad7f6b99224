"""Questions with pictures, videos and known answers, in a file of JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from surgery.base.errors import UserError
from surgery.base.files import parse_json, read_text

T = TypeVar("T")

QUESTIONS_BYTES = 64 << 20
"""Largest file of questions."""


@dataclass(frozen=True)
class Question:
    """A question with its expected answer."""

    pictures: tuple[Path, ...]
    text: str
    answer: str
    kind: str
    videos: tuple[Path, ...] = ()
    """Behind the pictures in the prompt."""


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """Questions from a JSONL file.

    A line is `{"image": path or list of paths, "question": ..., "answer": ..., "kind": ...}`;
    "image" (relative to the file) and "kind" may be left out. "video" names videos, which stand
    behind the pictures.

    Args:
        path: the file.
        limit: take this many, evenly spread over the file.

    Raises:
        UserError: no such file, or a line is not a question.
    """
    questions = read_lines(
        Path(path), question, "question", '{"image": path, "question": text, "answer": text}'
    )
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i * len(questions) // limit] for i in range(limit)]


def question(folder: Path, found: dict[str, Any]) -> Question:
    """A line of a file in `folder`.

    Raises:
        KeyError, TypeError: it is not a question.
    """
    texts = found["question"], found["answer"], found.get("kind", "question")
    check_texts(question=texts[0], answer=texts[1], kind=texts[2])
    return Question(paths(folder, found, "image"), *texts, paths(folder, found, "video"))


def paths(folder: Path, found: dict[str, Any], field: str) -> tuple[Path, ...]:
    """The files that a field of a line names, relative to the folder of the file.

    Raises:
        TypeError: the field is neither a path nor a list of paths.
    """
    names = found.get(field) or []
    names = [names] if isinstance(names, str) else names
    for name in names:
        check_texts(**{field: name})
    return tuple(folder / name for name in names)


def check_texts(**values: object) -> None:
    """Raise TypeError for the first value that is not text."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} must be text")


def read_lines(
    path: Path, read: Callable[[Path, dict[str, Any]], T], what: str, form: str
) -> list[T]:
    """What the lines of a JSONL file say.

    Args:
        path: the file.
        read: takes the folder of the file and a line; raises KeyError, TypeError or ValueError
            for one that is not as it must be.
        what: a line is, for messages.
        form: of a line, for messages.

    Raises:
        UserError: no such file, it is empty, or a line is not as it must be.
    """
    lines = read_text(path, UserError, QUESTIONS_BYTES, f"{path}: no such file.").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            if not isinstance(value, dict):
                raise TypeError("no JSON object")
            found.append(read(path.parent, value))
        except (ValueError, KeyError, TypeError) as e:
            why = f"{e} is missing" if isinstance(e, KeyError) else str(e)
            raise UserError(f"{path}, line {number}: not a {what}: {why}. A line is {form}.") from e
    if not found:
        raise UserError(f"{path}: holds no {what}.")
    return found
