"""The guard around every command: one line and an exit code, whatever happens inside.

| what happened                              | standard error               | exit code |
|--------------------------------------------|------------------------------|-----------|
| `UserError`                                | one line                     | 2         |
| an exception that data can cause           | one line                     | 2         |
| an exception that only our mistake causes  | one line, then the traceback | 70        |
| Ctrl-C, SIGTERM, SIGHUP, SIGQUIT           | one line                     | 128 + n   |
| the reader of our output is gone           | the command goes on          | its own   |

Data causes errors of the system, of memory, of numbers, of look-ups and of encodings, and whatever
a library says about what it was given. Only a failed assertion, a wrong type or a wrong name in a
frame of this project's own code counts as our mistake. The environment variable
SURGERY_TRACEBACK=1 shows the traceback of the others too.

This module imports nothing that is slow, so that the guard stands before the command's imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from surgery.base.errors import UserError, plain

WRITER = "qwen3vl-surgery"
BUG = 70
"""Exit code for our mistakes; EX_SOFTWARE of sysexits.h."""
OURS = ("surgery", "export_min", "quant")
MISTAKES = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
"""Those that ask a process to end; Windows has the first two."""


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; see the table above."""
    with streams(), signals() as received:
        try:
            try:
                code = command() or 0
                sys.stdout.flush()
                return code
            except Exception as e:
                # C code that a signal interrupts may raise an error of its own, but none of ours
                if not received or isinstance(e, UserError):
                    return told(e)
        except KeyboardInterrupt:
            pass
        say("interrupted")
        return 128 + (received or [signal.SIGINT])[0]


def leave(code: int) -> NoReturn:
    """End the process with a command's exit code.

    The interpreter takes a moment to end, and gives up its signal handlers first: Ctrl-C would then
    replace the code of a command that has ended. From here on it is ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def told(error: Exception) -> int:
    """Print an error; returns the exit code."""
    if is_mistake(error):
        say(f"error: this is a bug of {WRITER}: {line(error)}. Please report it, with the rest:")
        traceback.print_exception(error)
        return BUG
    say(f"error: {line(error)}")
    if os.environ.get("SURGERY_TRACEBACK"):
        traceback.print_exception(error)
    return 2


def is_mistake(error: Exception) -> bool:
    """Whether only a mistake in our code raises this: a kind of error, in a frame of ours."""
    if isinstance(error, UserError) or not isinstance(error, MISTAKES):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(__file__).resolve().parents[2]
    return any(Path(frames[-1].filename).is_relative_to(home / name) for name in OURS)


def line(error: BaseException) -> str:
    """What an error says, and what it is about, in one line."""
    about = [plain(note) for note in getattr(error, "__notes__", ())]
    return ": ".join([*about[::-1], plain(message(error))])


def message(error: BaseException) -> str:
    """What an error says, with what its kind leaves out."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror])
    if isinstance(error, MemoryError):
        return f"not enough memory. {text}".strip()
    if isinstance(error, ModuleNotFoundError):
        return f"{text}. Install the project with its dependencies: pip install -e ."
    if isinstance(error, RecursionError):
        return f"nested too deeply: {text}"
    first = next(iter(text.splitlines()), "")
    if isinstance(error, LookupError):
        return f"{first} is missing ({type(error).__name__})"
    return f"{first or 'no message'} ({type(error).__name__})"


def say(text: str) -> None:
    """Print a line to standard error, red where that is a terminal."""
    head, colon, rest = text.partition(": ")
    if head == "error" and colon and sys.stderr.isatty():
        text = f"\x1b[1;31m{head}\x1b[0m: {rest}"
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Signals that ask the process to end raise `KeyboardInterrupt`, so that outputs are tidied.

    Yields a list that receives the numbers of such signals. Only the main thread can set that;
    handlers are as before afterwards. A signal that is ignored, as nohup does, stays so. Where the
    exception is lost, as in the destructor of an object, the signal is sent again.
    """
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def lost(found: sys.UnraisableHookArgs) -> None:
        if isinstance(found.exc_value, KeyboardInterrupt) and received:
            threading.Timer(0.02, os.kill, (os.getpid(), received[-1])).start()
        else:
            hook(found)

    before: dict[int, Any] = {}
    hook = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
        sys.unraisablehook = lost
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Standard streams that exist, and that survive a reader who leaves.

    A process may be started with a stream closed: then files that it opens would take its number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = Stream(sys.stdout or open(os.devnull, "w"), "standard output")  # noqa: SIM115
    sys.stderr = Stream(sys.stderr or open(os.devnull, "w"), "")  # noqa: SIM115
    try:
        yield
    finally:
        with contextlib.suppress(OSError, UserError, ValueError):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


class Stream:
    """A text stream that drops what a reader no longer takes.

    Args:
        inner: the stream.
        name: what an error is about; "" for a stream whose errors nobody could read.
    """

    def __init__(self, inner: TextIO, name: str) -> None:
        self.inner, self.name = inner, name

    def write(self, text: str) -> int:
        """Write, or drop."""
        with self.guarded():
            try:
                return self.inner.write(text)
            except UnicodeEncodeError:
                encoding = self.inner.encoding or "ascii"
                known = text.encode(encoding, "backslashreplace").decode(encoding)
                return self.inner.write(known)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with self.guarded():
            self.inner.flush()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Lead the stream to nowhere once it fails; a disk that is full is told, once."""
        try:
            yield
        except OSError as e:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.inner.fileno())
                os.close(nowhere)
            if self.name and not isinstance(e, BrokenPipeError):
                raise UserError(f"{self.name}: cannot be written: {e.strerror}.") from e

    def __getattr__(self, name: str) -> Any:
        """Everything else as the stream has it."""
        return getattr(self.inner, name)
