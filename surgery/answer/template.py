"""A package's chat template, applied in a process of its own that can be stopped.

A chat template is a program, and the runtime's interpreter runs it without a limit: a loop never
ends, and a recursion ends the process. So it runs in a child that holds the tokenizer alone, with
a limit of time, and of memory where the system has one. The text is the runtime's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from surgery.base.errors import PackageError
from surgery.base.processes import limit_memory

SECONDS = 20.0
"""Time for one conversation. Real templates take milliseconds, loading the tokenizer a second."""
MEMORY = 4 << 30
"""Bytes of address space of the child: libraries, the tokenizer and the text."""
LONGEST = 64 << 20
"""Characters of the longest text."""


class Template:
    """The chat template of a package; the child starts with the first conversation."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        """Name a package.

        Args:
            folder: the package.
            seconds: time for one conversation.
        """
        self.folder, self.seconds = folder, seconds
        self.child: subprocess.Popen[bytes] | None = None
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def apply(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as the template writes it, ready for the next answer.

        Raises:
            PackageError: the template fails, ends its process, or does not come to an end.
        """
        child = self.child or self.start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(list(messages)).encode() + b"\n")
            child.stdin.flush()
            line = self.lines.get(timeout=self.seconds)
        except queue.Empty:
            self.stop()
            raise PackageError(
                f"{self.folder}: chat template: not done after {self.seconds:g} s. Does it loop?"
            ) from None
        except BrokenPipeError:
            line = b""
        if not line:
            self.stop()
            raise PackageError(f"{self.folder}: chat template: its process ended while it ran.")
        reply: dict[str, str] = json.loads(line)
        if "error" in reply:
            raise PackageError(f"{self.folder}: chat template: {reply['error']}")
        return reply["text"]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the child, which ends with this object, and with its standard input."""
        self.lines = queue.SimpleQueue()
        command = [sys.executable, "-m", "surgery.answer.template", str(self.folder.resolve())]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C comes to this process alone
        )
        assert child.stdout is not None
        threading.Thread(target=forward, args=(child.stdout, self.lines), daemon=True).start()
        weakref.finalize(self, end, child)
        self.child = child
        return child

    def stop(self) -> None:
        """End the child; the next conversation starts another."""
        if self.child is not None:
            end(self.child)
            self.child = None


def forward(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Hand on the lines of a stream, and an empty one at its end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for it."""
    child.kill()
    child.wait()
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()


def main(folder: str) -> int:
    """Answer conversations, a JSON line each, until standard input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_memory(MEMORY)
    import onnxruntime_genai as og

    tokenizer = None
    for line in sys.stdin.buffer:
        try:
            tokenizer = tokenizer or og.Tokenizer(og.Config(folder))
            text = tokenizer.apply_chat_template(line.decode(), add_generation_prompt=True)
            reply = {"text": text} if len(text) <= LONGEST else {"error": "its text is too long."}
        except Exception as e:  # the runtime raises RuntimeError, and what its bindings make of it
            reply = {"error": " ".join(str(e).split())[:500] or type(e).__name__}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
