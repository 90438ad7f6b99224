"""Write an output directory atomically: it appears complete or not at all.

The files are written to a hidden directory beside the destination, which is renamed at the end. If
the run fails or is killed, an earlier output stays as it was.
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
"""Only this project writes these files, so `--force` may replace a directory with one of them."""

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""Errors of the operating system that concern the output path, not the program."""


@contextlib.contextmanager
def staged(target: Path, force: bool = False) -> Iterator[Path]:
    """Provide a new directory that becomes `target` if the block ends without an error.

    Args:
        target: path of the output. It must not exist or must be empty, unless `force` is set.
        force: replace an earlier output of this project.

    Raises:
        OutputError: the target holds files that may not be replaced, it cannot be written, or the
            disk is full.
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
    """Remove a leftover stage, and the folders created for it that are empty."""
    shutil.rmtree(stage, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_free(target: Path, force: bool = False) -> None:
    """Check that an output may be written to `target`.

    Raises:
        OutputError: the target is a file, or a directory that may not be replaced.
    """
    try:
        if target.is_file():
            raise OutputError(
                f"{target}: is a file, but the output is a directory. Use another output."
            )
        if not target.is_dir() or not any(target.iterdir()):
            return
    except OSError as e:
        raise OutputError(f"{target}: cannot be read: {e.strerror}.") from e
    if not force:
        raise OutputError(
            f"{target}: not empty. Use --force to replace it, or choose another output."
        )
    if not any((target / name).is_file() for name in MARKERS):
        raise OutputError(
            f"{target}: not empty and not an earlier output (it holds no {' or '.join(MARKERS)}), "
            f"so --force does not replace it. Choose another output."
        )


def publish(stage: Path, target: Path) -> None:
    """Rename a finished stage to the target, and remove the earlier target only after that."""
    old = stage.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        stage.rename(target)
    except BaseException:  # including Ctrl-C between the two renames
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(target: Path) -> None:
    """Remove what killed runs left beside the target.

    A run that was killed between the two renames of `publish` left the earlier target under
    another name; that one is renamed back.
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
    """Return whether a process is running, or true if that cannot be found out."""
    if os.name != "posix" or pid == os.getpid():
        return os.name != "posix"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
