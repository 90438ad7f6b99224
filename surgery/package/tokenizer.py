"""Tokenizer and chat template, copied so that the package stands alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from surgery.base.errors import PackageError
from surgery.engine.facts import Facts

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
TEMPLATE = "chat_template.jinja"


def copy_tokenizer(facts: Facts, folder: Path) -> None:
    """Copy what the runtime and Hugging Face's tokenizers read.

    The chat template lies in a file of its own, in chat_template.json, or in
    tokenizer_config.json, by the age of the checkpoint; the package has it in its own file.

    Raises:
        PackageError: the checkpoint has no tokenizer.json or no tokenizer_config.json.
    """
    for name in REQUIRED:
        if not (facts.checkpoint / name).is_file():
            raise PackageError(f"{facts.checkpoint}: {name} is missing.")
    for name in (*REQUIRED, *OPTIONAL):
        source = facts.checkpoint / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    template = chat_template(facts.checkpoint)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")


def chat_template(checkpoint: Path) -> str | None:
    """The chat template, wherever the checkpoint keeps it."""
    if (checkpoint / TEMPLATE).is_file():
        return (checkpoint / TEMPLATE).read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = checkpoint / name
        if path.is_file():
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, str):
                return template
    return None
