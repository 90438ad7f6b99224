"""A checkpoint in the Hugging Face layout: its configuration and where each weight lies.

Nothing here reads a weight. A weight is a file, an offset and a length, taken from the header of
its safetensors shard (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import onnx_ir as ir
import safetensors

from export_min.families import FAMILIES
from surgery.base.demo import DEMO
from surgery.base.errors import CheckpointError, first_line
from surgery.base.files import read_json
from surgery.base.shards import header_digest

DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a package carries of the tokenizer, where the checkpoint has it."""

FILES = ("*.safetensors", "*.safetensors.index.json", "*config.json", *TOKENIZER_FILES)
"""What a download needs of a repository."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a shard, by place; its bytes are never read here."""

    file: Path
    offset: int
    """Bytes from the start of the file."""
    nbytes: int
    dtype: ir.DataType
    shape: tuple[int, ...]

    def tensor(self, name: str) -> ir.ExternalTensor:
        """The weight as an external tensor named `name`, found under its file's own folder."""
        return ir.ExternalTensor(
            self.file.name,
            self.offset,
            self.nbytes,
            self.dtype,
            shape=ir.Shape(self.shape),
            name=name,
            base_dir=self.file.parent,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint directory, validated file by file on access."""

    path: Path
    source: str
    """What the user named: a directory or a hub id."""
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as written; one of a family that can be exported, or `CheckpointError`."""
        config = read_json(self.path / "config.json", CheckpointError)
        found = config.get("model_type")
        if found not in FAMILIES:
            known = ", ".join(f"{kind!r} ({name})" for kind, name in FAMILIES.items())
            raise CheckpointError(f"{self.source}: model_type is {found!r}, needs {known}.")
        return config

    @property
    def model_type(self) -> str:
        """The family, one of `FAMILIES`."""
        return str(self.config["model_type"])

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, symbolic links resolved (in the hub cache a shard is one)."""
        index = self.path / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            places = read_json(index, CheckpointError).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
                raise CheckpointError(f"{index}: no weight_map from tensors to files.")
            names = sorted(set(places.values()))
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing or not names:
            raise CheckpointError(
                f"{self.source}: no weights: {', '.join(missing) or 'the index names no shard'} "
                f"missing. Download the whole checkpoint, in safetensors format."
            )
        return tuple((self.path / name).resolve() for name in names)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Every tensor of every shard by its checkpoint name."""
        weights: dict[str, Weight] = {}
        for shard in self.shards:
            weights |= read_header(shard)
        return weights

    @cached_property
    def headers(self) -> dict[str, str]:
        """SHA-256 of each shard's header (names, dtypes, shapes, places), by file name."""
        return {shard.name: header_digest(shard) for shard in self.shards}

    def check_tokenizer(self) -> None:
        """Raise `CheckpointError` unless the files that make prompts are there."""
        for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            read_json(self.path / name, CheckpointError)


def open_checkpoint(
    source: str | Path | None = None, cache_dir: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Find a checkpoint: a local directory, a hub id, or the embedded demo (None or "demo").

    A hub id goes through huggingface_hub and so honours its token, cache and offline mode.

    Raises:
        CheckpointError: no such directory, and no such hub id or no way to reach it.
    """
    name = "demo" if source is None else str(source)
    if source is None or (name == "demo" and not Path(name).exists()):
        return Checkpoint(DEMO, name)
    if Path(name).is_dir():
        return Checkpoint(Path(name).resolve(), name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(f"{name}: no such directory, and not a hub id of the form org/name.")
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as e:
        raise CheckpointError(f"{name}: the hub says: {first_line(e)}") from e
    except (OSError, huggingface_hub.errors.LocalEntryNotFoundError) as e:
        raise CheckpointError(
            f"{name}: no such directory, and the hub cannot be reached for it: {first_line(e)}"
        ) from e
    return Checkpoint(Path(path), name, revision)


def read_header(shard: Path) -> dict[str, Weight]:
    """The tensors of one shard by name.

    `safetensors` itself checks the file (header, contiguous places, length); huggingface_hub's
    parser tells the places, which `safetensors` keeps to itself.
    """
    try:
        with safetensors.safe_open(shard, framework="numpy"):
            pass
        header = huggingface_hub.parse_local_safetensors_file_metadata(shard)
    except (safetensors.SafetensorError, huggingface_hub.errors.SafetensorsParsingError) as e:
        raise CheckpointError(f"{shard}: truncated or corrupt: {first_line(e)}") from e
    base = 8 + header_size(shard)
    weights = {}
    for name, info in header.tensors.items():
        if info.dtype not in DTYPES:
            raise CheckpointError(
                f"{shard.name}: {name} is {info.dtype}, needs one of {', '.join(DTYPES)}. "
                f"Quantized checkpoints are not supported: start from the original one."
            )
        start, stop = info.data_offsets
        dtype = DTYPES[info.dtype]
        assert stop - start == math.prod(info.shape) * dtype.itemsize
        weights[name] = Weight(shard, base + start, stop - start, dtype, tuple(info.shape))
    return weights


def header_size(shard: Path) -> int:
    """Bytes of the JSON header, from the eight bytes before it."""
    with shard.open("rb") as file:
        return int.from_bytes(file.read(8), "little")
