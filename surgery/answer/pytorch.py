"""A checkpoint in PyTorch, in a process of its own, which gives the answers to compare with.

torch stays out of this process, so it takes part in no measurement of a package. The other
process is `python -m export_min answer`; the module `export_min.answer` describes what the two
say to each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from surgery.base.errors import CheckpointError, OutputError, PackageError, UserError
from surgery.base.pictures import png
from surgery.base.processes import ending
from surgery.base.staging import blamed

KINDS = {kind.__name__: kind for kind in (UserError, OutputError, PackageError, CheckpointError)}
"""Errors that the other process may name."""
TAIL = 5
"""Lines of its standard error that go into the message where it ends unexpectedly."""


@dataclass(frozen=True)
class Asked:
    """A question as PyTorch reads it."""

    question: str
    pictures: tuple[Image.Image, ...]
    ids: npt.NDArray[np.int64]
    """Token ids of the prompt, those of the pictures included."""


@dataclass(frozen=True)
class Answer:
    """PyTorch's greedy answer."""

    tokens: list[int]
    text: str
    """The tokens as text, special ones left out."""
    logits: npt.NDArray[np.float32]
    """`[len(tokens), V]`: the row that chose each token."""


class PyTorch:
    """A checkpoint that another process holds in float32; made by `running`."""

    def __init__(self, child: subprocess.Popen[bytes], folder: Path, said: StandardError) -> None:
        """Speak with a process that `running` started.

        Args:
            child: the process.
            folder: for the files of one request at a time.
            said: what the process writes to standard error.
        """
        self.child, self.folder, self.said = child, folder, said

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        checkpoint: str | Path,
        cache_dir: str | None = None,
        revision: str | None = None,
        text: bool = False,
    ) -> Iterator[PyTorch]:
        """Load a checkpoint in a process that lasts as long as the block.

        Args:
            checkpoint: a local directory, a hub id, or "demo" for the embedded one.
            cache_dir: where the hub keeps its downloads.
            revision: branch, tag or commit on the hub.
            text: the checkpoint is a language model, of any family.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            UserError: the process ended unexpectedly.
        """
        command = [sys.executable, "-m", "export_min", "answer", f"--input={checkpoint}"]
        command += ["--text"] if text else []
        command += [] if cache_dir is None else [f"--cache-dir={cache_dir}"]
        command += [] if revision is None else [f"--revision={revision}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if sys.stderr.isatty():
            environment["TQDM_POSITION"] = "-1"  # huggingface_hub then shows downloads in a pipe
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C comes to this process alone, which ends that one
            ) as child,
        ):
            assert child.stdin is not None and child.stderr is not None
            said = StandardError(child.stderr)
            try:
                pytorch = cls(child, Path(folder), said)
                pytorch.reply()
                said.forward = False  # from here on a progress bar owns the terminal
                yield pytorch
            finally:
                child.kill()
                said.thread.join()
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()

    def prompt(self, question: str, pictures: Sequence[Image.Image] = ()) -> Asked:
        """A user turn with pictures, pictures first.

        Raises:
            UserError: the question holds a mark of a picture.
        """
        with self.saved(pictures) as paths:
            reply = self.ask("prompt", question=question, pictures=paths)
        return Asked(question, tuple(pictures), np.array(reply["ids"], np.int64))

    def generate(self, asked: Asked, steps: int, stop: bool = True) -> Answer:
        """Greedy decoding.

        Args:
            asked: from `prompt`.
            steps: most tokens to make.
            stop: end at an end-of-sequence token.
        """
        logits = self.folder / "logits.npy"
        with self.saved(asked.pictures) as paths:
            reply = self.ask(
                "generate",
                question=asked.question,
                pictures=paths,
                steps=steps,
                stop=stop,
                logits=str(logits),
            )
        rows = np.load(logits)
        logits.unlink()
        return Answer(reply["tokens"], reply["text"], rows)

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        """A parameter of the checkpoint in float32, by name.

        Raises:
            CheckpointError: the checkpoint has no such parameter.
        """
        path = self.folder / "weight.npy"
        self.ask("weight", name=name, weight=str(path))
        weight: npt.NDArray[np.float32] = np.load(path)
        path.unlink()
        return weight

    def replace(self, weights: Iterable[tuple[str, npt.NDArray[np.float32]]]) -> None:
        """Compute with other weights, by parameter name; a tied head gets one of its own.

        Raises:
            CheckpointError: the checkpoint has no such weight, or one of another shape.
            OutputError: there is no room for a weight's file.
        """
        path = self.folder / "weight.npy"
        for name, weight in weights:
            with blamed(path):
                np.save(path, weight)
            self.ask("replace", name=name, weight=str(path))
            path.unlink()

    @contextlib.contextmanager
    def saved(self, pictures: Sequence[Image.Image]) -> Iterator[list[str]]:
        """Paths of the pictures as files, which are removed when the block ends."""
        paths = [self.folder / f"{i}.png" for i in range(len(pictures))]
        try:
            for path, picture in zip(paths, pictures, strict=True):
                with blamed(path):
                    path.write_bytes(png(picture))
            yield [str(path) for path in paths]
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            UserError: as the other process says, or it ended unexpectedly.
        """
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing reply says more
            self.child.stdin.write(json.dumps({"ask": what, **fields}).encode() + b"\n")
            self.child.stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """The next reply.

        Raises:
            UserError: as the other process says, or it ended unexpectedly.
        """
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            raise UserError(f"the PyTorch process {ending(code)}: {self.said.tail()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise KINDS.get(reply["kind"], UserError)(reply["error"])
        return reply


class StandardError:
    """What a process writes to standard error: the last lines are kept.

    A thread reads it, since a full pipe would stop the process. While the checkpoint loads, a
    terminal shows it as well, which is where a download reports its progress.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """Start to read a stream."""
        self.forward = sys.stderr.isatty()
        self.pieces: deque[bytes] = deque(maxlen=64)
        self.thread = threading.Thread(target=self.read, args=(stream,), daemon=True)
        self.thread.start()

    def read(self, stream: IO[bytes]) -> None:
        """Read until the process closes the stream."""
        while piece := os.read(stream.fileno(), 4096):
            self.pieces.append(piece)
            if self.forward:
                sys.stderr.write(piece.decode(errors="replace"))
                sys.stderr.flush()

    def tail(self) -> str:
        """The last lines of a process that has ended, as one."""
        self.thread.join()
        lines = b"".join(self.pieces).decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-TAIL:]) or "no message"
