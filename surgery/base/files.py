"""Files that the program reads and somebody else wrote: bounded, of the expected kind, typed.

A checkpoint or a package may come from anyone. So a file is read only if it is a regular one (a
FIFO would block for ever, a device would never end), only up to a limit of bytes, and as UTF-8;
JSON is refused beyond a depth and a number of digits, and NaN and infinity, which JSON does not
have, are refused too. `Fields` then gives values of the type and range that the program needs.
Every fault is a `UserError` that names the file, and for a value its key, what was found and what
is needed.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from surgery.base.errors import UserError

CONFIG_BYTES = 1 << 20
"""Largest configuration."""
MANIFEST_BYTES = 16 << 20
"""Largest manifest, shard index or chat template file: they grow with the number of tensors."""
TOKENIZER_BYTES = 256 << 20
"""Largest tokenizer.json; that of Qwen3-VL has 7 MB."""
DEPTH = 64
"""Deepest nesting of objects and lists."""
DIGITS = 40
"""Digits of the longest integer. `model_max_length` of published tokenizers has 31."""
SHOWN = 60
"""Characters of a value that a message repeats."""


def read_bytes(path: Path, error: type[UserError], limit: int, missing: str = "") -> bytes:
    """The bytes of a regular file, which may be reached through symbolic links.

    Args:
        path: the file.
        error: the class of the error, which says what the file belongs to.
        limit: bytes that it may have at most.
        missing: the message if there is no such file; by default it names folder and file.

    Raises:
        UserError: of class `error`: the file is missing, unreadable, no regular file or too large.
    """
    # O_NONBLOCK: to open a FIFO must not wait for a writer; regular files do not heed it
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a tape would rewind
            raise error(f"{path}: {kind_of(path)}, must be a regular file.")
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path}: {kind_of(path)}, must be a regular file.")
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise error(missing or f"{path.parent}: {path.name} is missing.") from e
    except OSError as e:
        raise error(f"{located(path)}: cannot be read: {e.strerror or e}.") from e
    except ValueError as e:  # a name with a null character
        raise error(f"{located(path)}: cannot be read: {e}.") from e
    if len(data) > limit:
        raise error(f"{path}: larger than {limit:,} bytes, the most that such a file may have.")
    return data


def located(path: Path) -> str:
    """A path in a message; a name that no file can have is shortened."""
    return str(path) if len(path.name) < 256 and path.name.isprintable() else brief(path.name)


def kind_of(path: Path) -> str:
    """What a path is that is no regular file, in words."""
    mode = os.stat(path).st_mode
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")


def read_text(
    path: Path, error: type[UserError], limit: int = CONFIG_BYTES, missing: str = ""
) -> str:
    """The text of a regular UTF-8 file; a byte order mark is dropped. As `read_bytes` otherwise."""
    try:
        return read_bytes(path, error, limit, missing).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise error(f"{path}: not UTF-8: {e.reason} at byte {e.start}.") from e


def read_json(
    path: Path,
    error: type[UserError],
    missing: str = "",
    broken: str = "not valid JSON",
    limit: int = CONFIG_BYTES,
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file, UTF-8.
        error: the class of the error, which says what the file belongs to.
        missing: the message if there is no such file; by default it names folder and file.
        broken: what the message says of a file that cannot be decoded.
        limit: bytes that it may have at most.

    Raises:
        UserError: the file is missing, cannot be read, or holds no JSON object. The class of the
            exception is `error`.
    """
    data = read_bytes(path, error, limit, missing)
    try:
        value = parse_json(data.decode("utf-8-sig"))
    except ValueError as e:
        raise error(f"{path}: {broken}: {e}.") from e
    if not isinstance(value, dict):
        raise error(f"{path}: holds {kind_of_value(value)}, needs to hold an object.")
    return value


def parse_json(text: str) -> Any:
    """Decode JSON within `DEPTH` and `DIGITS`.

    Raises:
        ValueError: the text is no JSON, nests too deeply, or holds a number that JSON has not or
            that is too long.
    """
    try:
        value = json.loads(text, parse_int=integer, parse_float=finite, parse_constant=no_constant)
    except RecursionError as e:
        raise ValueError(f"nests deeper than {DEPTH} levels") from e
    if depth_exceeds(value, DEPTH):
        raise ValueError(f"nests deeper than {DEPTH} levels")
    return value


def write_json(value: object, path: Path) -> None:
    """Write a value as JSON, in ASCII and indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")


def integer(digits: str) -> int:
    """An integer of a length that does not take long to convert."""
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits, {DIGITS} are allowed")
    return int(digits)


def finite(digits: str) -> float:
    """A number that float64 can hold."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{brief(digits)} is too large for a number")
    return number


def no_constant(name: str) -> float:
    """Refuse what Python writes for numbers that are not finite."""
    raise ValueError(f"{name} is no JSON number")


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether objects and lists nest deeper than `most`, without recursion."""
    level = [value]
    for _ in range(most + 1):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(part.values())
            elif isinstance(part, list):
                inner.extend(part)
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def brief(value: object) -> str:
    """A value in a message: one line, printable, not long."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def kind_of_value(value: object) -> str:
    """The kind of a JSON value, in words."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "a text"}
    return kinds.get(type(value), "a number")


@dataclass(frozen=True)
class Fields:
    """Typed, bounded values of a JSON object.

    Attributes:
        file: the file, for messages.
        values: the object.
        error: the class of the errors.
        path: keys on the way from the file's outermost object, for messages.
    """

    file: Path
    values: Mapping[str, Any]
    error: type[UserError]
    path: str = ""

    @classmethod
    def read(cls, file: Path, error: type[UserError], missing: str = "") -> Fields:
        """Read a configuration.

        Raises:
            UserError: as `read_json`.
        """
        return cls(file, read_json(file, error, missing), error)

    def __contains__(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self.values.get(key) is not None

    def fault(self, key: str, needed: str) -> UserError:
        """The error for a value that is not what it must be."""
        name = f"{self.path}{key}"
        if key not in self.values:
            return self.error(f"{self.file}: {name} is missing, needs {needed}.")
        return self.error(f"{self.file}: {name} is {shown(self.values[key])}, needs {needed}.")

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """An integer in `least..most`; a float of integral value is none.

        Raises:
            UserError: there is none, and no default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not is_integer(value) or not least <= value <= most:
            raise self.fault(key, f"an integer from {least:,} to {most:,}")
        return int(value)

    def integers(self, key: str, least: int, most: int, longest: int) -> list[int]:
        """A list of integers in `least..most`, or one of them as a list.

        Raises:
            UserError: there is none.
        """
        value = self.values.get(key)
        every = value if isinstance(value, list) else [value]
        found = [v for v in every if is_integer(v) and least <= v <= most]
        if len(found) != len(every) or not 1 <= len(every) <= longest:
            raise self.fault(
                key, f"an integer from {least:,} to {most:,}, or a list of 1 to {longest}"
            )
        return found

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number in `least..most`.

        Raises:
            UserError: there is none, and no default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not is_number(value) or not least <= value <= most:
            raise self.fault(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def numbers(self, key: str, least: float, most: float, count: int) -> list[float]:
        """A list of `count` finite numbers in `least..most`.

        Raises:
            UserError: there is none.
        """
        value = self.values.get(key)
        every = value if isinstance(value, list) else []
        found = [float(v) for v in every if is_number(v) and least <= v <= most]
        if len(every) != count or len(found) != count:
            raise self.fault(key, f"a list of {count} numbers from {least:g} to {most:g}")
        return found

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false.

        Raises:
            UserError: there is neither, and no default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text.

        Raises:
            UserError: there is none, and no default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fault(key, "a text")
        return value

    def filename(self, key: str, default: str | None = None) -> str:
        """The name of a file in the same folder: no path.

        Raises:
            UserError: there is none, or one that leads elsewhere.
        """
        name = self.text(key, default)
        if not name or name in (".", "..") or any(c in name for c in "/\\\0:"):
            raise self.fault(key, "the name of a file in the same folder")
        return name

    def inner(self, key: str) -> Fields:
        """The fields of an object inside this one.

        Raises:
            UserError: there is none.
        """
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.fault(key, "an object")
        return Fields(self.file, value, self.error, f"{self.path}{key}.")

    def objects(self, key: str, longest: int) -> Iterator[Fields]:
        """The fields of each object of a list.

        Raises:
            UserError: there is no such list.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) > longest:
            raise self.fault(key, f"a list of at most {longest} objects")
        for i, part in enumerate(value):
            if not isinstance(part, dict):
                raise self.fault(key, "a list of objects")
            yield Fields(self.file, part, self.error, f"{self.path}{key}[{i}].")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a JSON value is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_integer(value)


def shown(value: object) -> str:
    """A value as a message repeats it."""
    return brief(repr(value))
