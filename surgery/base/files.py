"""Read files that other programs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.base.errors import UserError


def read_json(
    path: Path, error: type[UserError], missing: str = "", broken: str = "not valid JSON"
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file, UTF-8.
        error: class of the errors to raise, such as `CheckpointError`.
        missing: message if the file does not exist. By default, it names the folder and the file.
        broken: words for a file that cannot be decoded.

    Raises:
        UserError: the file is missing, cannot be read, or holds no JSON object. The class of the
            exception is `error`.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise error(missing or f"{path.parent}: {path.name} is missing.") from e
    except ValueError as e:  # not UTF-8, or not JSON
        raise error(f"{path}: {broken}: {e}.") from e
    except OSError as e:
        raise error(f"{path}: cannot be read: {e.strerror}.") from e
    if not isinstance(value, dict):
        raise error(f"{path}: holds a {type(value).__name__}, needs to hold an object.")
    return value
