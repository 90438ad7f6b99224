"""A lock that lives as long as the process that holds it, on a file that all can see.

The kernel drops it when a process ends, however it ends. It holds between threads, processes and
containers that share a volume, where process ids mean nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


class Held(Exception):
    """Another run holds the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, made for it and removed after.

    Raises:
        Held: another holds it.
        OSError: the file cannot be made, or the file system has no locks.
    """
    descriptor = take(path)
    try:
        yield
    finally:
        drop(path, descriptor)


def drop(path: Path, descriptor: int) -> None:
    """Remove the file of a lock that is held, and let go; Ctrl-C meanwhile does not stop that."""
    if os.name == "nt":  # no open file can be removed there
        os.close(descriptor)
    try:
        with contextlib.suppress(OSError):
            path.unlink()
    except KeyboardInterrupt:
        path.unlink(missing_ok=True)
        raise
    finally:
        if os.name != "nt":
            os.close(descriptor)


def take(path: Path) -> int:
    """The descriptor of a file that is locked and still bears its name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except FileNotFoundError:
            pass  # who held it removed it; ours is a file without a name
        except KeyboardInterrupt:
            lock(descriptor)  # the file is ours to remove only with its lock
            drop(path, descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock an open file, or raise `Held` at once."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise Held from e
        raise
