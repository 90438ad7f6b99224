"""The token ids that genai_config.json names: ends of an answer, padding, the first of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery.base.errors import PackageError
from surgery.base.files import Fields, is_integer
from surgery.base.tokens import Tokens

LONGEST_ENDS = 64
"""Most tokens that end an answer."""


@dataclass(frozen=True)
class TokenIds:
    """Where a model's configurations name its tokens.

    Attributes:
        generation: generation_config.json; empty where there is none.
        text: the text part of config.json.
        outer: config.json itself, which may be the same.
        tokens: the tokenizer's tokens.
        size: rows of the embedding table.
    """

    generation: Fields
    text: Fields
    outer: Fields
    tokens: Tokens
    size: int

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer.

        Raises:
            PackageError: there is none, or one outside the embedding table.
        """
        part = self.generation if "eos_token_id" in self.generation else self.text
        return part.integers("eos_token_id", 0, self.size - 1, LONGEST_ENDS)

    @property
    def start(self) -> int:
        """The token that begins a text; where none is named, the first that ends an answer.

        Raises:
            PackageError: it is outside the embedding table.
        """
        for part in (self.generation, self.text, self.outer):
            if is_integer(part.values.get("bos_token_id")):
                return part.integer("bos_token_id", 0, self.size - 1)
        return self.ends[0]

    def padding(self) -> tuple[int, str]:
        """The padding token, and a line about it if no configuration names one that prompts lack.

        The runtime masks this token wherever it stands in a prompt.

        Raises:
            PackageError: every token that could be taken occurs in prompts.
        """
        named = (
            (part.file.name, int(part.values["pad_token_id"]))
            for part in (self.generation, self.text, self.outer)
            if is_integer(part.values.get("pad_token_id"))
        )
        wanted = dict.fromkeys(named)  # both parts of config.json may name the same
        try:
            return self.tokens.padding(wanted, self.size)
        except ValueError as e:
            path: Path = self.tokens.folder / "tokenizer.json"
            raise PackageError(f"{path}: {e}.") from e

    def unknown_ends(self) -> list[str]:
        """Ends that the tokenizer does not have, each as one clause."""
        return [
            f"eos_token_id {token} is no token of the tokenizer"
            for token in self.ends
            if token not in self.tokens
        ]
