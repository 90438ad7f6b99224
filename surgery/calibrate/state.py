"""What a calibration keeps on disk: whole files only, and none of them trusted blindly.

    batches.npz     the sampled tokens as the decoder reads them, until the sweep has ended
    state.npz       activations and figures behind the last finished piece, until then too
    measured.json   figures of all weights, once the sweep has ended
    weights/        the quantized weights (`Store`)

The weights of a piece are written before the state that counts it, so a run that is interrupted
at any moment goes on behind the last piece in the state. A file that cannot be read is said aloud,
and its work is done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from quant import BlockError, BlockFormat
from surgery.base.console import announce
from surgery.base.errors import OutputError
from surgery.calibrate.pieces import Array
from surgery.calibrate.plan import EIGHT, base_format
from surgery.calibrate.store import Store
from surgery.calibrate.sweep import Batch, Candidate, Measured, Streams

T = TypeVar("T")

BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
"""What reading a file raises that was cut or changed."""


@dataclass(frozen=True)
class Results:
    """Files of a folder, written whole or not at all.

    Attributes:
        folder: where they lie; named after everything that decides what they hold.
    """

    folder: Path

    def path(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name

    def write(self, name: str, content: Callable[[BinaryIO], None]) -> None:
        """Write a file whole or not at all.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        with blamed(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.path(name).with_suffix(".partial")
            with partial.open("wb") as file:
                content(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path(name))

    def read(self, name: str, content: Callable[[Path], T]) -> T | None:
        """Read a file; None where there is none, or where it is broken, which is said."""
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            return content(path)
        except BROKEN as e:
            announce(
                f"{path}: cannot be used ({type(e).__name__}: {e}); that part of the calibration "
                f"is done again",
            )
            return None

    def remove(self, *names: str) -> None:
        """Remove files that are no longer needed."""
        for name in names:
            with contextlib.suppress(OSError):
                self.path(name).unlink()


@dataclass(frozen=True)
class Kept(Results):
    """The folder of one calibration.

    Attributes:
        symmetric: whether 4-bit blocks go without zero points.
        block: most 4-bit weights that share a scale.
        scales: NumPy dtype of scales.
    """

    symmetric: bool
    block: int
    scales: np.dtype[Any]

    @property
    def store(self) -> Store:
        """The quantized weights."""
        return Store(self.folder / "weights")

    def save_batches(self, batches: Sequence[Batch], rows: Batch) -> None:
        """Keep the sampled tokens; a state behind other tokens means nothing and goes."""
        self.remove("state.npz")
        arrays: dict[str, Any] = {}
        arrays |= {f"{i}.{name}": x for i, batch in enumerate(batches) for name, x in batch.items()}
        arrays |= {f"rows.{name}": array for name, array in rows.items()}
        self.write("batches.npz", lambda file: np.savez(file, **arrays))

    def batches(self) -> tuple[list[Batch], Batch] | None:
        """The sampled tokens, where they were kept."""
        return self.read("batches.npz", read_batches)

    def save_state(
        self, done: int, streams: Streams, measured: Sequence[Sequence[Measured]]
    ) -> None:
        """Keep the state of a sweep behind `done` pieces."""
        assert streams.probe is not None
        groups = [[figures(one) for one in group] for group in measured]
        arrays: dict[str, Any] = {
            **{f"main.{i}": array for i, array in enumerate(streams.main)},
            **{f"changed.{number}": array for number, array in streams.changed.items()},
            "probe": streams.probe,
            "about": np.array(json.dumps({"done": done, "measured": groups})),
        }
        self.write("state.npz", lambda file: np.savez(file, **arrays))

    def state(self) -> tuple[int, Streams, list[list[Measured]]] | None:
        """The state of an earlier sweep, if its weights are there too."""

        def load(path: Path) -> tuple[int, Streams, list[list[Measured]]]:
            with path.open("rb") as file, np.load(file) as arrays:
                about = json.loads(str(arrays["about"]))
                main = sum(name.startswith("main.") for name in arrays.files)
                changed = [name for name in arrays.files if name.startswith("changed.")]
                streams = Streams(
                    [arrays[f"main.{i}"] for i in range(main)],
                    arrays["probe"],
                    {int(name.split(".")[1]): arrays[name] for name in changed},
                )
            measured = [[self.restored(one) for one in group] for group in about["measured"]]
            for group in measured:
                self.require(group)
            return int(about["done"]), streams, measured

        return self.read("state.npz", load)

    def finish(self, measured: Sequence[Measured]) -> None:
        """Keep the figures of a sweep that has ended, and drop what only a resumption needs."""
        text = json.dumps([figures(one) for one in measured], indent=1)
        self.write("measured.json", lambda file: (file.write(text.encode()), None)[1])
        self.remove("state.npz", "batches.npz")

    def finished(self) -> list[Measured] | None:
        """The figures of a sweep that has ended, if its weights are there too."""

        def load(path: Path) -> list[Measured]:
            measured = [self.restored(one) for one in json.loads(path.read_text(encoding="utf-8"))]
            self.require(measured)
            return measured

        return self.read("measured.json", load)

    def require(self, measured: Sequence[Measured]) -> None:
        """Raise `ValueError` unless the blocks of every weight are there in full."""
        for one in measured:
            (n, k), form = one.shape, next(iter(one.candidates))
            if not self.store.holds(one.name, form.nbytes(n, k, self.scales)):
                raise ValueError(f"the blocks of {one.name} are missing or cut")

    def restored(self, data: Mapping[str, Any]) -> Measured:
        """The inverse of `figures`."""
        n, k = (int(size) for size in data["shape"])
        stack = int(data.get("stack", 1))
        forms = [base_format(k, self.symmetric, self.block), EIGHT]
        if stack > 1:
            forms = [BlockFormat(4, int(data["block"]), self.symmetric)]
        candidates = {
            form: Candidate(None, float(error), form.nbytes(n, k, self.scales), blocks(worst))
            for form, error, worst in zip(forms, data["errors"], data["worst"], strict=True)
        }
        return Measured(
            str(data["name"]),
            (n, k),
            candidates,
            float(data["norm"]),
            int(data["tokens"]),
            float(data["damping"]),
            float(data["share"]),
            float(data["loss"]),
            stack,
            int(data.get("own", 0)),
        )


@contextlib.contextmanager
def blamed(folder: Path) -> Iterator[None]:
    """Errors of the disk are about the folder of the calibration."""
    try:
        yield
    except OSError as e:
        raise OutputError(
            f"{folder}: the calibration cannot be kept: {e.strerror}. What is finished stays; "
            f"the same command goes on from there."
        ) from e


def figures(one: Measured) -> dict[str, Any]:
    """What is known of a weight as plain data."""
    base = next(iter(one.candidates))
    return {
        "name": one.name,
        "shape": one.shape,
        "norm": one.norm,
        "tokens": one.tokens,
        "damping": one.damping,
        "share": one.share,
        "loss": one.loss,
        "errors": [candidate.error for candidate in one.candidates.values()],
        "worst": [[*map(asdict, candidate.worst)] for candidate in one.candidates.values()],
        **({"stack": one.stack, "own": one.own, "block": base.block} if one.stack > 1 else {}),
    }


def blocks(data: Sequence[Mapping[str, Any]]) -> tuple[BlockError, ...]:
    """Blocks that weigh most, from plain data."""
    return tuple(
        BlockError(int(one["row"]), int(one["block"]), float(one["share"])) for one in data
    )


def read_batches(path: Path) -> tuple[list[Batch], Batch]:
    """The inverse of `Kept.save_batches`."""
    found: dict[str, dict[str, Array]] = {}
    with path.open("rb") as file, np.load(file) as arrays:
        for name in arrays.files:
            group, _, part = name.partition(".")
            found.setdefault(group, {})[part] = arrays[name]
    rows = found.pop("rows")
    return [found[str(i)] for i in range(len(found))], rows
