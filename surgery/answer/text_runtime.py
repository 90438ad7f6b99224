"""A package of a language model in onnxruntime-genai: text in, tokens and logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.answer.runtime import Picture, Prompt, Runtime, one_line
from surgery.answer.trusted import read_package, takes_pictures
from surgery.base.errors import PackageError, UserError
from surgery.base.tokens import chat_template


class TextRuntime(Runtime):
    """A loaded package whose decoder takes tokens, as `apply --recipe decoder` makes it."""

    def __init__(self, folder: str | Path, overlay: Mapping[str, Any] | None = None) -> None:
        """Load a package.

        Args:
            folder: the package.
            overlay: laid over its genai_config.json.

        Raises:
            PackageError: no package there, or the runtime cannot load it.
        """
        self.configure(folder)
        self.chats = chat_template(self.folder, PackageError) is not None
        self.load(overlay)

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as the chat template writes it, ready for the next answer.

        Raises:
            PackageError: there is no template, or it fails, or does not come to an end.
        """
        if not self.chats:
            raise PackageError(f"{self.folder}: has no chat template, so it takes no questions.")
        return super().chat(messages)

    def ask(self, question: str, pictures: int | Sequence[Picture] = 0) -> str:
        """One user turn; without a chat template, the question as a text to continue."""
        return super().ask(question, pictures) if self.chats else question

    def prompt(self, text: str, pictures: Sequence[Picture] = ()) -> Prompt:
        """Tokenize a prompt.

        Raises:
            UserError: the prompt fills the context, or comes with a picture.
        """
        if pictures:
            raise UserError(f"{self.folder}: a package of a language model; it takes no pictures.")
        with one_line(self.folder, "read the prompt"):
            ids = np.array(self.tokenizer.encode(text), np.int32)
        self.check_length(ids)
        return Prompt(None, ids)

    def read(self, generator: Any, prompt: Prompt) -> None:
        """Let a generator read a prompt."""
        generator.append_tokens(prompt.ids[None])


def open_package(folder: str | Path) -> Runtime:
    """Load a package of either kind.

    Raises:
        PackageError: no package there, or the runtime cannot load it.
    """
    config = read_package(Path(folder), "genai_config.json")
    return (Runtime if takes_pictures(config) else TextRuntime)(folder)
