"""A language model as Hugging Face describes it, in the folder of its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery.base.errors import PackageError
from surgery.base.files import Fields
from surgery.base.tokens import Tokens
from surgery.package.token_ids import TokenIds

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
"""Keys under which configurations have the context length, in the order in which they count."""


@dataclass(frozen=True)
class LanguageModel:
    """What a graph does not say of its model.

    Attributes:
        config: config.json.
        generation: generation_config.json; empty where there is none.
        tokens: tokens and chat template; None without tokenizer.json.
    """

    config: Fields
    generation: Fields
    tokens: Tokens | None

    @classmethod
    def read(cls, folder: Path) -> LanguageModel:
        """Read the files of a folder.

        Raises:
            PackageError: no config.json, or a file is not what it must be.
        """
        config = Fields.read(folder / CONFIG, PackageError)
        path = folder / GENERATION
        generation = (
            Fields.read(path, PackageError) if path.exists() else Fields(path, {}, PackageError)
        )
        known = (folder / TOKENIZER).exists()
        return cls(config, generation, Tokens.read(folder, PackageError) if known else None)

    @property
    def text(self) -> Fields:
        """The part of config.json about text: an inner one where the model has others."""
        return self.config.inner("text_config") if "text_config" in self.config else self.config

    @property
    def kind(self) -> str:
        """`model_type`.

        Raises:
            PackageError: there is none.
        """
        return self.text.text("model_type")

    def length(self, most: int) -> int:
        """The context length, at most `most`.

        Raises:
            PackageError: it is no positive integer.
        """
        for key in LENGTHS:
            if key in self.text:
                return min(most, self.text.integer(key, 1, 1 << 31))
        return most

    def ids(self, tokens: Tokens, size: int) -> TokenIds:
        """Where the model's tokens are named.

        Args:
            tokens: those of its tokenizer.
            size: rows of its embedding table.
        """
        return TokenIds(self.generation, self.text, self.config, tokens, size)
