"""A checkpoint in the Hugging Face layout: its configuration and the location of each weight.

Nothing here reads weight data. The header of a safetensors shard gives the offset and length of
each weight in the file (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import math
import os
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
from surgery.base.files import MANIFEST_BYTES, TOKENIZER_BYTES, brief, read_json, shown
from surgery.base.shards import header_digest, sample_digest

SAFETENSORS_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
"""Dtypes that a weight may have, by their names in safetensors headers."""

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
"""Files of the tokenizer. A checkpoint has some of them."""

FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", *TOKENIZER_FILES),
    "README.md",  # names the license
)
"""Patterns of the files to download from a repository."""


@dataclass(frozen=True)
class Weight:
    """The location of one tensor in a shard. Its data is never read here."""

    file: Path
    folder: Path
    """The folder above all shards of the checkpoint."""
    offset: int
    """Bytes from the start of the file."""
    nbytes: int
    dtype: ir.DataType
    shape: tuple[int, ...]

    def tensor(self, name: str) -> ir.ExternalTensor:
        """The weight as an external tensor named `name`, by its path below the shards' folder."""
        return ir.ExternalTensor(
            self.file.relative_to(self.folder).as_posix(),
            self.offset,
            self.nbytes,
            self.dtype,
            shape=ir.Shape(self.shape),
            name=name,
            base_dir=self.folder,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint directory. Each file is read and validated when it is first used."""

    path: Path
    source: str
    """What the user named: a directory or a hub id."""
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json as written.

        Raises:
            CheckpointError: the file is missing or broken, or its model_type is not supported.
        """
        config = read_json(self.path / "config.json", CheckpointError)
        found = config.get("model_type")
        if not isinstance(found, str) or found not in FAMILIES:
            known = ", ".join(f"{kind!r} ({name})" for kind, name in FAMILIES.items())
            raise CheckpointError(
                f"{self.source}: model_type is {shown(found)}, needs to be one of {known}."
            )
        return config

    @property
    def model_type(self) -> str:
        """The `model_type` of config.json, one of `FAMILIES`."""
        return str(self.config["model_type"])

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, with symbolic links resolved: the hub cache stores links."""
        index = self.path / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.exists():
            places = read_json(index, CheckpointError, limit=MANIFEST_BYTES).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
                raise CheckpointError(
                    f"{index}: has no weight_map that maps tensor names to files."
                )
            names = sorted(set(places.values()))
            for name in names:
                check_inside(name, index)
        missing = [name for name in names if not os.path.isfile(self.path / name)]  # any name
        if missing or not names:
            lost = ", ".join(map(brief, missing[:3])) or "the index names no shard"
            raise CheckpointError(
                f"{self.source}: no weights: {lost} "
                f"missing. Download the whole checkpoint, in safetensors format."
            )
        return tuple((self.path / name).resolve() for name in names)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Every tensor of every shard, by its name in the checkpoint."""
        weights: dict[str, Weight] = {}
        for shard in self.shards:
            weights |= read_header(shard, self.folder)
        return weights

    @cached_property
    def folder(self) -> Path:
        """The folder above all shards, links resolved: that of each shard, if it is the same."""
        try:
            return Path(os.path.commonpath([shard.parent for shard in self.shards]))
        except ValueError as e:  # drives of Windows have nothing above them
            raise CheckpointError(f"{self.source}: the shards lie on several drives.") from e

    @cached_property
    def headers(self) -> dict[str, str]:
        """SHA-256 of each shard's header (names, dtypes, shapes, places), by path in `folder`."""
        return {self.inside(shard): header_digest(shard) for shard in self.shards}

    @cached_property
    def samples(self) -> dict[str, str]:
        """SHA-256 of samples of each shard's bytes, by path in `folder`."""
        return {self.inside(shard): sample_digest(shard) for shard in self.shards}

    def inside(self, shard: Path) -> str:
        """The path of a shard in `folder`, with slashes."""
        return shard.relative_to(self.folder).as_posix()

    def check_tokenizer(self, pictures: bool = True) -> None:
        """Raise `CheckpointError` unless the files that make prompts are there.

        Args:
            pictures: whether that of the pictures is one of them.
        """
        read_json(self.path / "tokenizer.json", CheckpointError, limit=TOKENIZER_BYTES)
        read_json(self.path / "tokenizer_config.json", CheckpointError, limit=MANIFEST_BYTES)
        if pictures:
            read_json(self.path / "preprocessor_config.json", CheckpointError)
        if (self.path / "generation_config.json").exists():
            read_json(self.path / "generation_config.json", CheckpointError)


def check_inside(name: str, index: Path) -> None:
    """Refuse the name of a shard that leads out of the checkpoint's folder.

    A shard may be a symbolic link to anywhere: whoever made the link had the file system.

    Raises:
        CheckpointError: the name is absolute, or climbs with "..".
    """
    parts = name.replace("\\", "/").split("/")
    if not name or parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name:
        raise CheckpointError(f"{index}: names {brief(name)}, which is outside the checkpoint.")


def open_checkpoint(
    source: str | Path | None = None, cache_dir: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Find a local directory, download a hub id, or take the demo checkpoint (None or "demo").

    huggingface_hub does the download, so its token, cache and offline mode apply.

    Raises:
        CheckpointError: there is no such directory, and the hub has no such repository or cannot
            be reached.
    """
    name = "demo" if source is None else str(source)
    if source is None or (name == "demo" and not Path(name).exists()):
        return Checkpoint(DEMO, name)
    if Path(name).is_dir():
        return Checkpoint(Path(name).resolve(), name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(
            f"{name}: there is no such directory, and it is not a hub id of the form org/name."
        )
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as e:
        raise CheckpointError(f"{name}: the hub refused the download: {first_line(e)}") from e
    except (OSError, huggingface_hub.errors.LocalEntryNotFoundError) as e:
        raise CheckpointError(
            f"{name}: no such directory, and the hub cannot be reached: {first_line(e)}"
        ) from e
    return Checkpoint(Path(path), name, revision)


def read_header(shard: Path, folder: Path) -> dict[str, Weight]:
    """The tensors of one shard by name.

    `safetensors` checks the file: its header, its length, and that tensors follow each other
    without gaps. It does not expose the offsets, so the parser of huggingface_hub reads those.

    Raises:
        CheckpointError: the file is broken, or a tensor has a dtype that is not supported.
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
        if info.dtype not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{shard.name}: {name} is {info.dtype}, needs to be one of "
                f"{', '.join(SAFETENSORS_DTYPES)}. "
                f"Quantized checkpoints are not supported: use the original one."
            )
        start, stop = info.data_offsets
        dtype = SAFETENSORS_DTYPES[info.dtype]
        if stop - start != math.prod(info.shape) * dtype.itemsize:
            raise CheckpointError(
                f"{shard}: truncated or corrupt: {brief(name)} has {stop - start:,} bytes, not "
                f"those of its shape."
            )
        weights[name] = Weight(shard, folder, base + start, stop - start, dtype, tuple(info.shape))
    return weights


def header_size(shard: Path) -> int:
    """Return the length of the JSON header in bytes, from the first eight bytes of a shard."""
    with shard.open("rb") as file:
        return int.from_bytes(file.read(8), "little")
