"""Detect that a safetensors shard was replaced since the export.

The graphs refer to each weight by file and offset. The header of a safetensors file
(https://huggingface.co/docs/safetensors/index#format) holds the name, dtype, shape and offset of
each tensor, so the references stay valid as long as the header stays the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def header_digest(shard: Path) -> str:
    """Return the SHA-256 of a shard's header, including the length prefix."""
    with shard.open("rb") as file:
        prefix = file.read(8)
        return hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little"))).hexdigest()
