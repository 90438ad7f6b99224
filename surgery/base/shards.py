"""How an export recognizes the shards that its graphs point into.

The graphs know each weight by file and offset; the header of a safetensors file
(https://huggingface.co/docs/safetensors/index#format) holds names, dtypes, shapes and places, so
a shard with the same header is read rightly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def header_digest(shard: Path) -> str:
    """SHA-256 of a shard's header, its length prefix included."""
    with shard.open("rb") as file:
        prefix = file.read(8)
        return hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little"))).hexdigest()
