"""A generator of onnxruntime-genai that goes on from one turn of a conversation to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.answer.runtime import Picture, Prompt, Runtime, one_line
from surgery.base.errors import UserError


class Session:
    """What a package has read of a conversation, with its cache.

    A later turn hands over the tokens behind those that the generator has; it starts anew where the
    new prompt does not begin with them, brings a picture, or does not fit. The runtime silently
    ignores pictures after the first call.

    The generator's own sequence says what it has; an end token is not in it. The generator goes
    back by one token before it goes on: that of an answer which was stopped has no place in the
    cache yet, and the runtime would leave a hole there.
    """

    def __init__(self, runtime: Runtime, options: dict[str, Any], lasting: bool = False) -> None:
        """Start with nothing read.

        Args:
            runtime: the opened package.
            options: search options of every answer.
            lasting: reserve a cache of twice the size, so that turns can follow.
        """
        self.runtime, self.options, self.lasting = runtime, options, lasting
        self.generator: Any = None
        self.room = 0
        """Tokens that the cache of the generator has room for."""
        self.pictures: list[Picture] = []

    def answer(self, prompt: Prompt, pictures: Sequence[Picture], steps: int) -> Iterator[int]:
        """Tokens of an answer, at most `steps`, the end token included.

        Args:
            prompt: the whole conversation.
            pictures: the pictures in it. Those of earlier turns are the same objects as before.
            steps: largest number of tokens.

        Raises:
            PackageError: the runtime cannot answer. The next answer starts anew.
        """
        generator, self.generator = self.generator, None
        new = self.unread(generator, prompt, pictures, steps)
        if new is None:
            generator = None  # its cache is freed before the next one is made
            more = steps + (prompt.length + steps if self.lasting else 0)
            generator = self.runtime.generator(prompt, more, self.options)
            self.room = min(prompt.length + more, self.runtime.context)
            self.pictures = list(pictures)
        else:
            with one_line(self.runtime.folder, "go on"):
                generator.rewind_to(prompt.length - len(new))
                generator.append_tokens(new[None])
        self.generator = generator
        try:
            yield from self.runtime.tokens(generator, steps)
        except UserError:
            self.generator = None
            raise

    def unread(
        self, generator: Any, prompt: Prompt, pictures: Sequence[Picture], steps: int
    ) -> npt.NDArray[np.int32] | None:
        """The last token that the generator has read, and those behind it in a prompt.

        Returns:
            The tokens `[n]`, or None where the generator cannot go on with this prompt.
        """
        search = self.runtime.config.get("search", {})
        if generator is None or not search.get("past_present_share_buffer"):
            return None  # the runtime goes back only in a shared cache
        if min(prompt.length + steps, self.runtime.context) > self.room:
            return None
        same = len(pictures) == len(self.pictures)
        if not same or any(a is not b for a, b in zip(pictures, self.pictures, strict=True)):
            return None
        with one_line(self.runtime.folder, "go on"):
            read = np.asarray(generator.get_sequence(0), np.int32).reshape(-1)
        if len(read) >= prompt.length or not np.array_equal(prompt.ids[: len(read)], read):
            return None
        return prompt.ids[len(read) - 1 :].astype(np.int32)
