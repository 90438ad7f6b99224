"""Packed copies of weights that onnxruntime stores beside them, as ONNX files name them.

An initializer's external data then has entries `prepacked_0`, `prepacked_1` and so on, one for each
node that packs it. The value is a key, made of the op type and a hash of the copy, then
`offset;length;padded` of each buffer of the copy, joined by "|"; buffers lie in the data file of
the initializer. Written by onnxruntime's option
`session.save_external_prepacked_constant_initializers` (1.20 and newer).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx

PREFIX = "prepacked_"
BUFFER = re.compile(r"(?<=\|)(\d{1,18});(\d{1,18})(?=;)")
"""Offset and length of a buffer in the value of an entry."""


def packed_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """The entries of an initializer that name packed copies, by key."""
    data = tensor.external_data
    return {entry.key: entry.value for entry in data if entry.key.startswith(PREFIX)}


def buffers(values: Iterable[str]) -> list[tuple[int, int]]:
    """Offset and length of each buffer that entries name, in bytes."""
    return [(int(found[1]), int(found[2])) for text in values for found in BUFFER.finditer(text)]


def without_packed(tensor: onnx.TensorProto) -> int:
    """Drop the entries of an initializer that name packed copies.

    Returns:
        Where the last of their buffers ends in the data file; 0 if there is none.
    """
    entries = packed_entries(tensor)
    if not entries:
        return 0
    kept = [entry for entry in tensor.external_data if entry.key not in entries]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    return max((offset + length for offset, length in buffers(entries.values())), default=0)
