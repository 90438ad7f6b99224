"""Calibration inputs of any graph: arrays that its user has, in NumPy's own files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.calibrate.pieces import Array
from surgery.calibrate.sweep import MASK, Batch

ROWS = 8
"""Examples of a batch, and of the probe."""


def files(path: Path) -> list[Path]:
    """The .npz files that a path names: itself, or those in it.

    Raises:
        UserError: there is none.
    """
    found = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not found or not all(file.is_file() for file in found):
        raise UserError(f"--calibrate {path}: no .npz file.")
    return found


def digest(path: Path) -> str:
    """A digest of the files and their order."""
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files(path)]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


def batches_from(
    path: Path, inputs: Sequence[ir.Value], caches: Collection[str] = ()
) -> tuple[list[Batch], Batch]:
    """Batches of at most `ROWS` examples, and the first of them as probe rows.

    Args:
        path: a .npz file, or a folder of them. Its arrays have the names of inputs; their first
            axis counts examples. Tokens that "attention_mask" `[B, S]` calls padding run and count
            for nothing.
        inputs: of the graph.
        caches: names of inputs for past keys and values, `[B, K, P, D]`, which may be left out.

    Raises:
        UserError: a file cannot be read, or does not fit the graph. The message names it.
    """
    batches = [batch for file in files(path) for batch in split(file, inputs, caches)]
    return batches, batches[0]


def split(file: Path, inputs: Sequence[ir.Value], caches: Collection[str]) -> Iterator[Batch]:
    """The batches of one file."""
    arrays = read(file)
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise UserError(
            f"--calibrate {file}: every array needs one row for each example; they have "
            f"{', '.join(f'{name} {list(array.shape)}' for name, array in arrays.items())}."
        )
    given = fitted(file, arrays, [v for v in inputs if v.name in arrays or v.name not in caches])
    if MASK in given:
        kept = given[MASK].reshape(len(given[MASK]), -1).any(axis=1)
        if not kept.all():
            raise UserError(
                f"--calibrate {file}: {MASK} leaves no token of example {int(kept.argmin())}."
            )
    left_out = [value for value in inputs if value.name not in given]
    (count,) = counts
    for start in range(0, count, ROWS):
        batch = {name: array[start : start + ROWS] for name, array in given.items()}
        rows = min(ROWS, count - start)
        yield batch | {value.name or "": empty(value, rows) for value in left_out}


def read(file: Path) -> dict[str, Array]:
    """The arrays of a file.

    Raises:
        UserError: it is no .npz file, or holds other objects than numbers.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise UserError(f"--calibrate {file}: cannot be read as arrays of NumPy (.npz): {e}") from e


def fitted(file: Path, arrays: Mapping[str, Array], inputs: Sequence[ir.Value]) -> dict[str, Array]:
    """The arrays in the dtypes of the inputs.

    Raises:
        UserError: an input has none, an array is for none, or its shape is not that of its input.
    """
    known = {value.name or "": value for value in inputs}
    unknown = sorted(arrays.keys() - known.keys())
    if unknown:
        raise UserError(
            f"--calibrate {file}: the graph has no input {unknown[0]}; it has {', '.join(known)}."
        )
    found = {}
    for name, value in known.items():
        if name not in arrays:
            raise UserError(f"--calibrate {file}: has no array for the input {name}.")
        array, dtype = arrays[name], value.dtype
        shape = list(value.shape) if value.shape is not None else [None] * array.ndim
        alike = all(not isinstance(d, int) or d in (n, 1) for d, n in zip(shape, array.shape))
        if len(shape) != array.ndim or not alike:
            words = [d if isinstance(d, int) else str(d) for d in shape]
            raise UserError(
                f"--calibrate {file}: {name} is {list(array.shape)}, the input needs {words}."
            )
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise UserError(f"--calibrate {file}: {name} has entries that are no finite numbers.")
        wanted = array.dtype if dtype is None else dtype.numpy()
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise UserError(f"--calibrate {file}: {name} is {array.dtype}, the input {wanted}.")
        found[name] = array.astype(wanted)
    return found


def empty(value: ir.Value, rows: int) -> Array:
    """An empty cache for some rows."""
    assert value.shape is not None and value.dtype is not None
    _, heads, _, width = (d if isinstance(d, int) else 0 for d in value.shape)
    return np.zeros((rows, heads, 0, width), value.dtype.numpy())
