"""Check that the runtime reads text with the package's tokenizer as Hugging Face does."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.answer.reading import Reading
from surgery.base.errors import PackageError
from surgery.verify.finding import Finding
from surgery.verify.opened import Opened


def check_tokenizer(package: Opened) -> Iterator[Finding]:
    """Let both encode and decode the same texts."""
    file = package.folder / "tokenizer.json"
    with Reading(package.folder, file) as reading:
        try:
            note = reading.note() or "the runtime reads as Hugging Face does"
        except PackageError as e:
            yield Finding(file.name, problem=str(e).removeprefix(f"{file}: "))
        else:
            yield Finding(file.name, note.removeprefix(f"{file.name}: "))
