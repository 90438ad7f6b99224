"""The guard around commands: exit codes, one line, streams that close, Ctrl-C at any time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgery.base import guard
from surgery.base.early import is_command
from surgery.base.errors import UserError, plain
from surgery.base.guard import BUG, run

ROOT = Path(__file__).resolve().parents[2]


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


FROM_DATA = [
    (UserError("facts. What to do."), "facts. What to do."),
    (OSError(errno.EIO, "Input/output error", "x.json"), "x.json: Input/output error"),
    (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    (OSError("what Pillow says"), "what Pillow says (OSError)"),
    (MemoryError(), "not enough memory."),
    (MemoryError("Unable to allocate 8 GiB"), "not enough memory. Unable to allocate 8 GiB"),
    (KeyError("shape"), "'shape' is missing (KeyError)"),
    (IndexError("list index out of range"), "list index out of range is missing (IndexError)"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "can't decode byte 0xff"),
    (ValueError("cannot reshape\nsecond line"), "cannot reshape (ValueError)"),
    (OverflowError("too large"), "too large (OverflowError)"),
    (ZeroDivisionError("division by zero"), "division by zero"),
    (RecursionError("maximum depth"), "nested too deeply: maximum depth"),
    (RuntimeError("what onnxruntime says"), "what onnxruntime says (RuntimeError)"),
    (ModuleNotFoundError("No module named 'x'"), "No module named 'x'. Install"),
    (noted(ValueError("row 5: NaN"), "model.w"), "model.w: row 5: NaN (ValueError)"),
    (UserError("a \x1b[31mred\x1b[0m name\r\n\u202e\udc80"), r"a \x1b[31mred\x1b[0m name \u202e"),
]


@pytest.mark.parametrize(("error", "text"), FROM_DATA, ids=lambda x: type(x).__name__)
def test_errors_that_data_causes(capsys, error, text):
    def command() -> int:
        raise error

    assert run(command) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and text in err
    assert err.count("\n") == 1 and err[:-1].isprintable()


@pytest.mark.parametrize(
    "cause",
    [
        lambda: json.loads("[" * 100_000),
        lambda: json.loads("9" * 5000),
        lambda: json.dumps({1, 2}),  # a TypeError inside a library
        lambda: Path("/proc/self/mem").read_bytes(),
    ],
)
def test_errors_of_libraries(capsys, cause):
    assert run(cause) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mistakes_of_ours(capsys):
    """A wrong type in a frame of ours: a line says so, then the traceback."""
    assert run(lambda: run(None)) == BUG  # type: ignore[arg-type]
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: this is a bug of qwen3vl-surgery: 'NoneType'")
    assert any("Traceback" in line for line in rest)


def test_long_names():
    line = plain("tensor " + "x" * 10**6 + " is wrong. " + "many words " * 10**5 + "Do this.")
    assert len(line) <= 2001 and line.startswith("tensor xxx") and line.endswith("Do this.")


def test_handlers_are_restored():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    streams = sys.stdin, sys.stdout, sys.stderr
    assert run(lambda: 0) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert (sys.stdin, sys.stdout, sys.stderr) == streams


COMMAND = """
import os, sys
from surgery.base.guard import run
def command():
    {body}
sys.exit(run(command))
"""


def shell(body: str, redirect: str = "", pipe: str = "") -> subprocess.CompletedProcess[str]:
    """A command with streams led elsewhere; prints its exit code on standard output."""
    code = COMMAND.format(body=body)
    line = f'{{ {{ "$1" -c "$2" {redirect}; echo "code $?" >&3; }} {pipe}; }} 3>&1'
    words = ["bash", "-c", line, "bash", sys.executable, code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


MANY = "[print('x' * 1000, flush=True) for _ in range(1000)]; return 7"
COMPLAIN = "[print('x' * 1000, file=sys.stderr) for _ in range(1000)]; return 7"


@pytest.mark.parametrize(
    ("body", "redirect", "pipe"),
    [
        (MANY, "", "| head -1 >/dev/null"),
        (COMPLAIN, "2>&1", "| head -1 >/dev/null"),
        ("print('x'); return 7", ">&-", ""),
        ("print('x', file=sys.stderr); return 7", "2>&-", ""),
        ("assert sys.stdin.read() == ''; return 7", "<&-", ""),
        ("return 7 if os.open('/dev/null', 0) > 2 else 1", ">&- 2>&-", ""),
        (COMPLAIN, "2>/dev/full", ""),
    ],
)
def test_streams_that_close(body, redirect, pipe):
    """The command goes on, and its exit code is its own."""
    done = shell(body, redirect, pipe)
    assert done.stdout.splitlines()[-1] == "code 7", done
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_full_disk_behind_standard_output():
    done = shell("print('x')", ">/dev/full")
    assert done.stdout == "code 2\n"
    assert done.stderr == "error: standard output: cannot be written: No space left on device.\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["export_min", "surgery"])
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0])
def test_ctrl_c_during_imports(name, seconds, tmp_path):
    """From the package's first line on; the interpreter's own start is not ours."""
    words = [sys.executable, "-m", name, "-o", str(tmp_path / "out")]
    words += ["-i", str(tmp_path)] if name == "surgery" else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*words[:1], "-X", "importtime", *words[1:]],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith("surgery.base.early\n"):
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        err = [x for x in process.stderr.read().splitlines() if not x.startswith("import time")]
    assert err in (["interrupted"], []) or process.returncode == 2, err
    assert not any("Traceback" in line for line in err)
    assert process.returncode in (130, 2) and not (tmp_path / "out").exists()


LATE = """import os, signal, sys
from surgery.base.guard import leave
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
late = Late()
leave(2)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_the_interpreter_ends():
    """It has given up its handlers by then; the code of the command that ended stays."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for end, code in (("leave(2)", 2), ("sys.exit(2)", -signal.SIGINT)):
        words = [sys.executable, "-c", LATE.replace("leave(2)", end)]
        assert subprocess.run(words, env=environment, check=False).returncode == code


def test_ctrl_c_while_an_error_is_told(capsys, monkeypatch):
    def told(error: Exception) -> int:
        signal.raise_signal(signal.SIGINT)
        return 2

    monkeypatch.setattr(guard, "told", told)
    assert guard.run(lambda: 1 // 0) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interruption_that_a_library_turns_into_an_error(capsys):
    def command() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot import a part in C") from None
        return 0

    assert run(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interruption_that_a_destructor_swallows(capsys):
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def command() -> int:
        Closing()
        time.sleep(30)
        return 0

    assert run(command) == 143
    assert capsys.readouterr().err == "interrupted\n"


def test_is_command():
    assert is_command(["python", "-m", "export_min"]) and is_command(["p", "-O", "-m", "surgery"])
    for words in (["python"], ["python", "-m"], ["python", "-m", "pytest", "-m", "surgery"]):
        assert not is_command(words)
    assert not is_command(["python", "-m", "export_min.aside", "surgery"])
