"""Detect that a safetensors shard was replaced since the export.

The graphs know each weight by file and offset; the header of a safetensors file
(https://huggingface.co/docs/safetensors/index#format) holds names, dtypes, shapes and places, so
a shard with the same header is read rightly.

Another training of the same architecture has the same headers and other numbers. Samples of the
bytes tell it apart in a few milliseconds. They are no proof against a single changed number: a
digest of every byte would read the whole checkpoint twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

LONGEST_HEADER = 100_000_000
"""Bytes that safetensors allows a header."""


def header_digest(shard: Path) -> str:
    """Return the SHA-256 of a shard's header, including the length prefix."""
    with shard.open("rb") as file:
        prefix = file.read(8)
        length = min(int.from_bytes(prefix, "little"), LONGEST_HEADER)
        return hashlib.sha256(prefix + file.read(length)).hexdigest()


SAMPLES, SAMPLE = 64, 4096
"""Samples of a shard, and bytes in each."""


def sample_digest(shard: Path) -> str:
    """SHA-256 of a shard's size and of `SAMPLES` evenly spread pieces of it, the last included."""
    with shard.open("rb") as file:
        size = file.seek(0, 2)
        found = hashlib.sha256(str(size).encode())
        for i in range(SAMPLES):
            file.seek(max(0, size - SAMPLE) * i // (SAMPLES - 1))
            found.update(file.read(SAMPLE))
        return found.hexdigest()
