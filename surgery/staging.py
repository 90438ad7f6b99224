"""Outputs appear whole or not at all.

A directory is written beside its destination under a hidden name and renamed into place at the
end. Ctrl-C, an error or a kill leaves an earlier output as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from surgery.errors import OutputError

MARKERS = ("manifest.json", "genai_config.json")
"""A directory with one of these was written by us, so `--force` may replace it."""


@contextlib.contextmanager
def staged(target: Path, force: bool = False) -> Iterator[Path]:
    """A fresh directory that becomes `target` when the block ends well.

    Args:
        target: where the output shall appear; must not exist, be empty, or be replaceable.
        force: replace an earlier output of ours.

    Raises:
        OutputError: the target is occupied, not writable, or the disk is full.
    """
    target = Path(os.path.abspath(target))
    check_free(target, force)
    stage = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        stage.mkdir()
    except OSError as e:
        raise OutputError(f"{target}: cannot be written: {e.strerror}.") from e
    try:
        yield stage
        publish(stage, target)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(f"{target}: cannot be written: {e.strerror}.") from e
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_free(target: Path, force: bool = False) -> None:
    """Raise `OutputError` unless `target` may be (re)placed."""
    if target.is_file():
        raise OutputError(f"{target}: is a file, needs to be a directory.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target}: not empty. Use --force to replace it, or another output.")
    if not any((target / name).is_file() for name in MARKERS):
        raise OutputError(
            f"{target}: not empty and not an earlier output ({' or '.join(MARKERS)} missing), "
            f"so --force will not replace it. Use another output."
        )


def publish(stage: Path, target: Path) -> None:
    """Put a finished stage in the target's place; what stood there goes last."""
    old = stage.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(target: Path) -> None:
    """Remove what runs that were killed left beside the target."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(partial|old)")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process still runs; unknown counts as yes."""
    if os.name != "posix" or pid == os.getpid():
        return os.name != "posix"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
