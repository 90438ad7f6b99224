"""Copy the tokenizer and the chat template, so that a package needs no checkpoint."""

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
    """Copy the files that onnxruntime-genai and the tokenizers of Hugging Face read.

    Depending on its age, a checkpoint holds the chat template in chat_template.jinja, in
    chat_template.json or in tokenizer_config.json. The package always has chat_template.jinja.

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
    """Return the chat template from whichever file of the checkpoint holds it, or None."""
    if (checkpoint / TEMPLATE).is_file():
        return (checkpoint / TEMPLATE).read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = checkpoint / name
        if path.is_file():
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, str):
                return template
    return None
