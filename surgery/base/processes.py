"""Processes of our own: how one ended, in words, and how much memory one may take."""

from __future__ import annotations

import ctypes
import os
import signal


def ending(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", which the system does where memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def limit_memory(most: int) -> None:
    """Bound this process's address space, where the system can.

    Args:
        most: bytes.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def return_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc does)."""
    if os.name != "posix":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
