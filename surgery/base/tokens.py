"""Special tokens of a tokenizer, and those that its chat template writes.

The runtime masks the padding token wherever it stands in a prompt, and takes the places of
pictures from token ids alone. So an id that a configuration names must be the one that the
tokenizer gives to that token, and the padding id must be one that no prompt holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.base.errors import UserError
from surgery.base.files import (
    CONFIG_BYTES,
    MANIFEST_BYTES,
    TOKENIZER_BYTES,
    Fields,
    is_integer,
    read_json,
    read_text,
)

TEMPLATE = "chat_template.jinja"

PICTURE_TOKENS: Mapping[str, str] = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
}
"""Keys of config.json and genai_config.json, and the token that each is the id of."""
PICTURE_MARKS = (*PICTURE_TOKENS.values(), "<|vision_end|>")
"""Tokens around and in place of pictures and videos, whether or not a chat template has them."""
VARIABLES = ("bos_token", "eos_token", "unk_token")
"""Tokens of tokenizer_config.json that templates may write."""
MOST = 1 << 31
"""Ids that the runtime can hold."""
PAD = "<|endoftext|>"
"""The padding token of the Qwen families, as published."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a checkpoint or a package.

    Attributes:
        folder: where the tokenizer lies.
        added: ids of the added tokens, special ones among them, by content.
        special: contents of those that are special.
        plain: ids of the tokens of the vocabulary proper.
        pad: the padding token that tokenizer_config.json names, or None.
        template: the chat template; None if there is none.
        variables: tokens of tokenizer_config.json by the variables under which a template has them.
        framing: contents of the tokens that the tokenizer puts around every text.
    """

    folder: Path
    added: Mapping[str, int]
    special: frozenset[str]
    plain: frozenset[int]
    pad: str | None
    template: str | None
    variables: Mapping[str, str]
    framing: frozenset[str]

    @classmethod
    def read(cls, folder: Path, error: type[UserError]) -> Tokens:
        """Read tokenizer.json, tokenizer_config.json and the chat template.

        Args:
            folder: a checkpoint or a package.
            error: the class of the errors.

        Raises:
            UserError: of class `error`: a file cannot be read, or is not what it must be.
        """
        path = folder / "tokenizer.json"
        whole = Fields(path, read_json(path, error, limit=TOKENIZER_BYTES), error)
        added: dict[str, int] = {}
        special = set()
        for token in whole.objects("added_tokens", longest=1 << 20):
            content = token.text("content")
            added[content] = token.integer("id", 0, MOST - 1)
            if token.flag("special", False):
                special.add(content)
        plain = frozenset(vocabulary(whole))
        path = folder / "tokenizer_config.json"
        config = Fields(path, read_json(path, error, limit=MANIFEST_BYTES), error)
        check_types(config)
        pad = content_of(config.values.get("pad_token"))
        found = {key: content_of(config.values.get(key)) for key in VARIABLES}
        variables = {key: text for key, text in found.items() if text is not None}
        return cls(
            *(folder, added, frozenset(special), plain, pad, chat_template(folder, error)),
            *(variables, frozenset(framing(whole.values.get("post_processor")))),
        )

    def __contains__(self, token: int) -> bool:
        """Whether the tokenizer has an id."""
        return token in self.plain or token in self.added.values()

    def name(self, token: int) -> str:
        """The content of an added token, or the id as text."""
        return next((text for text, i in self.added.items() if i == token), str(token))

    def emitted(self) -> dict[int, str]:
        """Added tokens that a prompt holds.

        Those in the text of the template or in a variable that it names, those that the tokenizer
        itself puts around a text, and picture marks. The template is searched as text, not run: a
        token counts even in a branch that no prompt takes.
        """
        template = self.template or ""
        named = {text for key, text in self.variables.items() if key in template}
        held = {*PICTURE_MARKS, *self.framing, *named}
        return {
            i: text for text, i in self.added.items() if text in held or (text and text in template)
        }

    def padding(self, wanted: Iterable[tuple[str, int]], size: int) -> tuple[int, str]:
        """The padding id: the first candidate that no prompt holds.

        Candidates are those that configurations name, the tokenizer's own, `PAD`, any other special
        token, and an id of the embedding table that the tokenizer never makes.

        Args:
            wanted: candidates of configurations, each with the name of its file and key.
            size: rows of the embedding table.

        Returns:
            The id, and one line if it is none that a configuration names; "" otherwise.

        Raises:
            ValueError: every id occurs in prompts.
        """
        emitted = self.emitted()
        refused: list[str] = []
        for source, token in wanted:
            if token not in emitted and 0 <= token < size:
                return token, note(refused, token, self) if refused else ""
            refused.append(f"{source} names {self.name(token)}")
        own = self.added.get(self.pad or "")
        if own is not None and own not in emitted and own < size:
            return own, note(refused, own, self) if refused else ""
        others = sorted(self.added[text] for text in self.special if text != PAD)
        for token in (self.added.get(PAD, -1), *others):
            if 0 <= token < size and token not in emitted:
                return token, note(refused, token, self)
        unused = max([*self.plain, *self.added.values()], default=-1) + 1
        if unused < size:
            return unused, note(refused, unused, self)
        raise ValueError("every special token occurs in prompts, and no id is left for padding")


def note(refused: list[str], token: int, tokens: Tokens) -> str:
    """A line about a padding id that no configuration names."""
    why = f"{', '.join(refused)}, which prompts hold" if refused else "no configuration names one"
    return f"padding token: {why}; took {token} ({tokens.name(token)})"


def vocabulary(tokenizer: Fields) -> Iterator[int]:
    """Ids of the tokens of a tokenizer's model."""
    found = tokenizer.inner("model").values.get("vocab")
    if isinstance(found, dict) and all(is_integer(i) and 0 <= i < MOST for i in found.values()):
        yield from found.values()
    elif isinstance(found, list):
        yield from range(len(found))
    else:
        raise tokenizer.inner("model").fault("vocab", "an object of ids")


def check_types(config: Fields) -> None:
    """Raise where tokenizer_config.json has values of types with which the runtime does not load.

    Args:
        config: its content.
    """
    if "tokenizer_class" in config.values:  # null does not load either
        config.text("tokenizer_class")
    length = config.values.get("model_max_length", 0)
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise config.fault("model_max_length", "a number")
    decoder = config.values.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict) or not all(key.isdecimal() for key in decoder):
        raise config.fault("added_tokens_decoder", "an object whose keys are ids")


def framing(processor: Any) -> Iterator[str]:
    """Contents of the tokens that a tokenizer's post-processor adds to a text.

    Args:
        processor: `post_processor` of tokenizer.json, of any kind.
    """
    if not isinstance(processor, dict):
        return
    inner = processor.get("processors")
    for part in inner if isinstance(inner, list) else []:
        yield from framing(part)
    added = processor.get("special_tokens")
    yield from added if isinstance(added, dict) else ()


def content_of(token: Any) -> str | None:
    """The content of a token in tokenizer_config.json: a text, or an object with one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def chat_template(folder: Path, error: type[UserError]) -> str | None:
    """The chat template that transformers' tokenizer takes, wherever a checkpoint keeps it.

    A file of its own comes before tokenizer_config.json, and that before chat_template.json, which
    older checkpoints have for the processor. Of several named ones it is "default".

    Raises:
        UserError: of class `error`: a file cannot be read, or holds something else.
    """
    path = folder / TEMPLATE
    if path.exists():
        return bounded(read_text(path, error), path, error)
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if not path.exists():
            continue
        config = Fields(path, read_json(path, error, limit=MANIFEST_BYTES), error)
        if isinstance(config.values.get("chat_template"), list):
            for entry in config.objects("chat_template", longest=100):
                if entry.text("name") == "default":
                    return bounded(entry.text("template"), path, error)
            raise error(f"{path}: chat_template has none that is named default.")
        elif "chat_template" in config:
            return bounded(config.text("chat_template"), path, error)
    return None


def bounded(template: str, path: Path, error: type[UserError]) -> str:
    """A template that says something, no longer than a file of its own may be."""
    if not template.strip():
        raise error(f"{path}: the chat template is empty.")
    if len(template) > CONFIG_BYTES:
        raise error(f"{path}: chat_template of {len(template):,} characters: too long.")
    return template


def misnamed(named: Mapping[str, Any], tokens: Tokens) -> Iterator[str]:
    """Ids of picture tokens that are not the tokenizer's, each as one clause.

    Args:
        named: a configuration with the keys of `PICTURE_TOKENS`.
        tokens: the tokenizer's.
    """
    for key, token in PICTURE_TOKENS.items():
        own = tokens.added.get(token)
        if own is None:
            yield f"the tokenizer has no {token}"
        elif not is_integer(named.get(key)) or named[key] != own:
            yield f"{key} is {named.get(key)}, the tokenizer has {token} at {own}"
