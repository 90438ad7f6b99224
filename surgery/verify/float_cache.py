"""A package with an 8-bit cache as it would be with a float one: what is left is exact.

Rounding keys and values moves logits by some percent, which could hide a fault of that size. The
same graphs with a cache in float32 are held to what any other package is held to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from surgery.verify.opened import Opened

SCALES = 12
"""Inputs of GroupQueryAttention from here on are the scales of a cache."""
ATTRIBUTES = "k_quant_type", "v_quant_type", "kv_cache_bit_width"


@contextlib.contextmanager
def with_float_cache(package: Opened) -> Iterator[Opened]:
    """The package in a folder that lasts as long as the context; its data files are linked."""
    decoder = package.path("decoder")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        for file in package.folder.iterdir():
            if file.is_file() and file != decoder:
                link(file.resolve(), Path(made) / file.name)
        model = onnx.load(decoder, load_external_data=False)
        unround(model.graph)
        onnx.save(model, Path(made) / decoder.name)
        yield Opened(Path(made))


def link(source: Path, target: Path) -> None:
    """Give a file a second name: onnxruntime follows no symbolic link out of a graph's folder."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def unround(graph: onnx.GraphProto) -> None:
    """Take the scales of the cache away, and make it float32."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[SCALES:]
            kept = [one for one in node.attribute if one.name not in ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.INT8:
            kind.elem_type = onnx.TensorProto.FLOAT
