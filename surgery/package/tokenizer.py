"""Copy the tokenizer and the chat template, so that a package needs no checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

from surgery.base.errors import PackageError
from surgery.base.files import (
    MANIFEST_BYTES,
    TOKENIZER_BYTES,
    parse_json,
    read_bytes,
    read_json,
)
from surgery.base.tokens import TEMPLATE, Tokens

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
TEMPLATES = (TEMPLATE, "chat_template.json")
"""Files that may hold the chat template, beside tokenizer_config.json."""


def copy_tokenizer(tokens: Tokens, folder: Path) -> None:
    """Copy the files that onnxruntime-genai and the tokenizers of Hugging Face read.

    A checkpoint has its chat template in a file of its own, in tokenizer_config.json or in
    chat_template.json. The package has the one that transformers takes, in its own file. Another
    one in tokenizer_config.json, which the runtime would prefer, is left out.

    Raises:
        PackageError: the checkpoint has no tokenizer.json or no tokenizer_config.json, a file is
            not what its name says, or is a link out of the checkpoint.
    """
    for name in TEMPLATES:
        check_own(tokens.folder / name)
    for name in (*REQUIRED, *OPTIONAL):
        source = tokens.folder / name
        check_own(source)
        if name in REQUIRED or source.exists():
            (folder / name).write_bytes(contents(source))
    template = tokens.template
    if template is None:
        return
    (folder / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    path = folder / "tokenizer_config.json"
    config = read_json(path, PackageError, limit=MANIFEST_BYTES)
    if config.get("chat_template", template) != template:
        del config["chat_template"]
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="")


def check_own(source: Path) -> None:
    """Refuse a link to a file that is no part of the checkpoint: it would get into the package.

    Links may lead to the folder of tokenizer.json: in the cache of the hub all files are links into
    one folder of blobs.

    Raises:
        PackageError: the link leads elsewhere.
    """
    real = Path(os.path.realpath(source))
    homes = (source.parent, Path(os.path.realpath(source.parent / REQUIRED[0])).parent)
    if not any(real.is_relative_to(os.path.realpath(home)) for home in homes):
        raise PackageError(
            f"{source}: is a link out of the folder of the checkpoint. Copy the file there."
        )


def contents(source: Path) -> bytes:
    """The bytes of a file of the tokenizer.

    Raises:
        PackageError: there is none, or it is called .json and holds something else.
    """
    data = read_bytes(source, PackageError, TOKENIZER_BYTES)
    if source.suffix == ".json":
        try:
            parse_json(data.decode("utf-8-sig"))
        except ValueError as e:
            raise PackageError(f"{source}: not valid JSON: {e}.") from e
    return data
