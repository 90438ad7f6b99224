"""A conversation with the model in a package."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from surgery.answer.runtime import Picture, Runtime, Sampling, places
from surgery.answer.session import Session
from surgery.base.prompts import turn


class Conversation:
    """The turns so far and their pictures.

    A turn without pictures goes on where the answer before it ended; the package reads the whole
    conversation again where it cannot (see `Session`).
    """

    def __init__(
        self, runtime: Runtime, sampling: Sampling, max_tokens: int, lasting: bool = True
    ) -> None:
        """Start an empty conversation.

        Args:
            runtime: the opened package.
            sampling: how tokens are sampled.
            max_tokens: largest number of tokens in an answer.
            lasting: whether more than one turn is likely; memory is reserved for the next ones.
        """
        self.runtime, self.max_tokens = runtime, max_tokens
        self.session = Session(runtime, sampling.options(), lasting)
        self.messages: list[dict[str, str]] = []
        self.pictures: list[Picture] = []

    def say(self, text: str, pictures: Sequence[Picture]) -> Generator[str]:
        """Yield the answer to a user turn piece by piece, and add both to the conversation.

        If the caller stops early, the conversation keeps the part of the answer so far.

        Raises:
            UserError: the conversation is too long for the package. The turn is not added then.
        """
        content = turn(text, places(pictures))
        messages = [*self.messages, {"role": "user", "content": content}]
        every = [*self.pictures, *pictures]
        prompt = self.runtime.prompt(self.runtime.chat(messages), every)
        stream = self.runtime.tokenizer.create_stream()
        pieces: list[str] = []
        try:
            for token in self.session.answer(prompt, every, self.max_tokens):
                pieces.append(stream.decode(token))
                yield pieces[-1]
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
            self.pictures = every
