"""How another process ended, in words."""

from __future__ import annotations

import signal


def ending(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", which the system does where memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
