"""Copies of a package with another decoder graph, which last as long as a check of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from surgery.verify.opened import Opened


@contextlib.contextmanager
def twin(package: Opened, change: Callable[[onnx.GraphProto], None]) -> Iterator[Opened]:
    """The package with a changed decoder, in a folder of its own; its data files are linked."""
    decoder = package.path("decoder")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        for file in package.folder.iterdir():
            if file.is_file() and file != decoder:
                link(file.resolve(), Path(made) / file.name)
        model = onnx.load(decoder, load_external_data=False)
        change(model.graph)
        onnx.save(model, Path(made) / decoder.name)
        yield Opened(Path(made))


def link(source: Path, target: Path) -> None:
    """Give a file a second name: onnxruntime follows no symbolic link out of a graph's folder."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
