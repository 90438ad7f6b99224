"""Copy the tokenizer and the chat template, so that a package needs no checkpoint.

What the runtime would read otherwise than Hugging Face is written as the runtime reads it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from surgery.base.errors import PackageError
from surgery.base.files import (
    MANIFEST_BYTES,
    TOKENIZER_BYTES,
    brief,
    parse_json,
    read_bytes,
    read_json,
    write_json,
)
from surgery.base.tokens import TEMPLATE, Tokens
from surgery.package.byte_level import (
    GENERIC,
    class_for_runtime,
    decoder_for_runtime,
    is_byte_level,
)

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


def copy_tokenizer(tokens: Tokens, folder: Path) -> str:
    """Copy the files that onnxruntime-genai and the tokenizers of Hugging Face read.

    A checkpoint has its chat template in a file of its own, in tokenizer_config.json or in
    chat_template.json. The package has the one that transformers takes, in its own file. Another
    one in tokenizer_config.json, which the runtime would prefer, is left out. Class and decoder of
    a byte-level tokenizer are those with which the runtime reads it as one.

    Returns:
        A line for the user about what is not as in the checkpoint; "" if there is nothing to say.

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
    path = folder / "tokenizer_config.json"
    config = read_json(path, PackageError, limit=MANIFEST_BYTES)
    changed = False
    template = tokens.template
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8", newline="")
        if config.get("chat_template", template) != template:
            del config["chat_template"]
            changed = True
    told = write_byte_level(folder / "tokenizer.json", config)
    if told or changed:
        write_json(config, path)
    return told


def write_byte_level(path: Path, config: dict[str, Any]) -> str:
    """Change a byte-level tokenizer that the runtime would take for one of another kind.

    Args:
        path: tokenizer.json of the package.
        config: its tokenizer_config.json, which is changed too.

    Returns:
        What was changed, in one line; "" if nothing was.
    """
    tokenizer = read_json(path, PackageError, limit=TOKENIZER_BYTES)
    if not is_byte_level(tokenizer):
        return ""
    told = []
    name = config.get("tokenizer_class", "")
    if class_for_runtime(name) != name:
        config["tokenizer_class"] = class_for_runtime(name)
        told.append(f"tokenizer_class {brief(name) or 'missing'} became {GENERIC}")
    decoder = decoder_for_runtime(tokenizer)
    if decoder is not None:
        tokenizer["decoder"] = decoder
        path.write_text(json.dumps(tokenizer), encoding="utf-8", newline="")
        told.append("its decoder became ByteLevel alone")
    if not told:
        return ""
    return f"{path.name} is byte-level BPE; for onnxruntime-genai {' and '.join(told)}"


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
