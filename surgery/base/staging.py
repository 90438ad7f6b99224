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
from collections.abc import Iterable, Iterator
from pathlib import Path

from surgery.base.errors import OutputError

MARKERS = ("manifest.json", "genai_config.json", "surgery.json")
"""A directory with one of these was written by us, so `--force` may replace it."""

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""Errors that are about the place of the output."""


@contextlib.contextmanager
def staged(target: Path, force: bool = False) -> Iterator[Path]:
    """A fresh directory that becomes `target` when the block ends well.

    Args:
        target: where the output shall appear; must not exist, be empty, or be replaceable.
        force: replace an earlier output of ours.

    Raises:
        OutputError: the target is occupied, not writable, or the disk is full.
    """
    target = Path(os.path.realpath(target))
    stage = target.parent / f".{target.name}.{os.getpid()}.partial"
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        check_free(target, force)
        stage.mkdir()
    except OSError as e:
        remove(stage, made)
        raise OutputError(f"{target}: cannot be written: {e.strerror}.") from e
    try:
        yield stage
        publish(stage, target)
    except OSError as e:
        if e.errno in FULL_OR_FORBIDDEN:
            raise OutputError(f"{target}: cannot be written: {e.strerror}.") from e
        raise
    finally:
        remove(stage, made)


def remove(stage: Path, made: Iterable[Path]) -> None:
    """Remove what is left of a stage, and of the folders made for it those that are empty."""
    shutil.rmtree(stage, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_free(target: Path, force: bool = False) -> None:
    """Raise `OutputError` unless `target` may be (re)placed."""
    try:
        if target.is_file():
            raise OutputError(f"{target}: is a file, needs to be a directory.")
        if not target.is_dir() or not any(target.iterdir()):
            return
    except OSError as e:
        raise OutputError(f"{target}: cannot be read: {e.strerror}.") from e
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
    except BaseException:  # Ctrl-C between the two renames, too
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(target: Path) -> None:
    """Remove what runs that were killed left beside the target.

    One killed between the two renames of `publish` left the target itself under another name.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(partial|old)")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if not match or alive(int(match[1])):
            continue
        if match[2] == "old" and not target.exists():
            path.rename(target)
        else:
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
