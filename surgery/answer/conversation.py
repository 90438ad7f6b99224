"""A conversation with a package."""

from __future__ import annotations

from collections.abc import Generator

from PIL import Image

from surgery.answer.runtime import Runtime, Sampling
from surgery.base.prompts import turn


class Conversation:
    """Turns so far, with their pictures.

    Every turn reads the whole conversation in a generator of its own. The runtime could go on with
    an earlier one, but would then drop a picture of a later turn without a word, and misses the
    last token of its own answer.
    """

    def __init__(self, runtime: Runtime, sampling: Sampling, max_tokens: int) -> None:
        """Start without turns.

        Args:
            runtime: the package.
            sampling: how tokens are chosen.
            max_tokens: most tokens of an answer.
        """
        self.runtime, self.sampling, self.max_tokens = runtime, sampling, max_tokens
        self.messages: list[dict[str, str]] = []
        self.pictures: list[Image.Image] = []

    def say(self, text: str, pictures: list[Image.Image]) -> Generator[str]:
        """The answer to the next turn, piece by piece; it joins the conversation as far as it came.

        Raises:
            UserError: the conversation is too long for the package; the turn is then not in it.
        """
        messages = [*self.messages, {"role": "user", "content": turn(text, len(pictures))}]
        every = [*self.pictures, *pictures]
        prompt = self.runtime.prompt(self.runtime.chat(messages), every)
        stream = self.runtime.tokenizer.create_stream()
        pieces: list[str] = []
        try:
            for token in self.runtime.generate(prompt, self.max_tokens, self.sampling.options()):
                pieces.append(stream.decode(token))
                yield pieces[-1]
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
            self.pictures = every
