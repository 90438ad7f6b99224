"""`surgery.json`, the manifest of an output: who wrote it, from what, and every file by digest.

It serves two purposes. `--force` replaces only a folder whose manifest names this writer and lists
every file in it, so that nothing else is ever deleted. And a reader of the output can notice each
byte that changed since.

    {"writer": "qwen3vl-surgery", "kind": "package", "versions": {...}, "options": {...},
     "files": {"model.onnx": {"size": 170559, "sha256": "…"}, ...}}

The manifest does not list itself. It holds no time and no absolute path, so equal outputs have
equal manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

NAME = "surgery.json"
WRITER = "qwen3vl-surgery"
LARGEST = 16 << 20
"""Bytes up to which a file is read as a manifest."""
WORKERS = 4
"""Threads that compute digests."""


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Installed versions of libraries, for the manifest's `versions`."""
    return {name: version(name) for name in libraries}


def write(folder: Path, about: Mapping[str, object]) -> None:
    """Write the manifest of a finished folder, and bring every file to the disk.

    A digest is that of the file as it reads back. Files are synchronized one by one, because a
    file system may report a full disk no earlier.

    Args:
        folder: the folder; an earlier manifest in it is replaced.
        about: the other keys, such as kind, versions and options, as JSON can hold them.

    Raises:
        OSError: a file cannot be read, synchronized or written.
    """
    names = sorted(name for name in files(folder) if name != NAME)
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        entries = list(pool.map(lambda name: entry(folder / name), names))
    whole = {"writer": WRITER, **about, "files": dict(zip(names, entries, strict=True))}
    write_object(folder / NAME, whole)


def write_object(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON that is on the disk when this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def entry(path: Path) -> dict[str, object]:
    """Size in bytes and SHA-256 of a file that is on the disk when this returns."""
    with path.open("r+b") as file:  # Windows synchronizes only what is open for writing
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"size": file.tell(), "sha256": digest}


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none that this writer wrote.

    Raises:
        OSError: the folder or the manifest cannot be read.
    """
    whole = read_object(folder / NAME)
    if whole is None or whole.get("writer") != WRITER:
        return None
    listed = whole.get("files")
    if not isinstance(listed, dict) or not all(is_inside(name) for name in listed):
        return None
    return whole


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file of a sensible size; None for anything else.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_inside(name: str) -> bool:
    """Whether a file name of a manifest stays in the folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def files(folder: Path) -> Iterator[str]:
    """Everything in a folder that is no folder, by its path relative to it, with slashes.

    A folder without anything in it counts, by its path and a slash. Links are not followed.
    """
    for found in folder.iterdir():
        if found.is_dir() and not found.is_symlink():
            inner = [f"{found.name}/{name}" for name in files(found)]
            yield from inner or [f"{found.name}/"]
        else:
            yield found.name


def changes(folder: Path) -> Iterator[tuple[str, str]]:
    """Files that are not as the manifest says, each with what is wrong.

    Reads every byte of the folder.

    Raises:
        OSError: a file cannot be read.
        ValueError: the folder has no manifest of this writer.
    """
    whole = read(folder)
    if whole is None:
        raise ValueError(f"{folder}: no {NAME} of {WRITER}")
    listed = whole["files"]
    present = set(files(folder)) - {NAME}
    for name in sorted(listed.keys() | present):
        if name not in present:
            yield name, "is missing"
        elif name not in listed:
            yield name, f"is not listed in {NAME}"
        else:
            problem = difference(folder / name, listed[name])
            if problem:
                yield name, problem


def difference(path: Path, listed: object) -> str:
    """What sets a file apart from its entry in a manifest; "" for nothing."""
    if not isinstance(listed, dict) or not stat.S_ISREG(path.stat().st_mode):
        return "is not a file with an entry"
    size = path.stat().st_size
    if size != listed.get("size"):
        return f"has {size:,} bytes, {listed.get('size')} when written"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == listed.get("sha256") else "has other bytes than when written"
