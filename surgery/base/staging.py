"""Outputs appear whole or not at all, and replace nothing but earlier outputs.

A folder is written under a hidden name and takes its destination's place at the end, in one step
where the system can exchange two folders. Ctrl-C, an error, a full disk or a kill leaves an
earlier output as it was; what a killed run left behind goes with the next run to the same place.

A destination that is a mount point (as volumes of containers are) cannot be renamed. There the
hidden folder lies inside, and its files move one by one at the end, the manifest last. A kill
amid these moves leaves files of both outputs; the next run to that place completes the moves
before anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from surgery.base import earlier, locks, manifest
from surgery.base.errors import OutputError
from surgery.base.exchange import exchange

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""Errors that are about the place of the output."""

LOCK, NEW, READY, OLD = (f".surgery-{word}" for word in ("lock", "new", "ready", "old"))
"""Names inside a mount point, and endings of hidden names beside any other output."""

MOUNTS = Path("/proc/self/mountinfo")
"""Linux: mount points, the fifth word of a line, its odd characters as octal numbers."""


@dataclass(frozen=True)
class Places:
    """Where a run keeps its files until the end.

    Attributes:
        target: the output, without links in its path.
        inside: the hidden files lie inside the output, not beside it.
    """

    target: Path
    inside: bool

    def hidden(self, ending: str) -> Path:
        """The path of a hidden file or folder."""
        if self.inside:
            return self.target / ending
        return self.target.parent / f".{self.target.name}{ending}"


@contextlib.contextmanager
def staged(
    target: Path,
    force: bool = False,
    about: Mapping[str, object] | None = None,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """A fresh directory that becomes `target`, with a manifest, when the block ends well.

    Args:
        target: where the output shall appear; must not exist, be empty, or be replaceable.
        force: replace an earlier output of ours.
        about: keys of the manifest beside `files`; read when the block has ended.
        inputs: files and folders that the run reads; an output that holds one is refused.

    Raises:
        OutputError: the target is occupied, not writable, or another run is writing it; the disk
            is full; or files appeared at the target meanwhile.
    """
    target, inputs = resolved(target), tuple(inputs)
    made = [folder for folder in target.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, made)
        with blamed(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            places = stack.enter_context(claimed(target))
            examine(target, force, inputs)
            stage = places.hidden(NEW)
            stage.mkdir()
        stack.callback(remove, stage)
        try:
            yield stage
        except OSError as e:
            if e.errno in FULL_OR_FORBIDDEN or lies_in(e.filename, stage):
                raise OutputError(f"{target}: cannot be written: {e.strerror}.") from e
            raise
        with blamed(target):
            manifest.write(stage, about or {})
            examine(target, force, inputs)
            if places.inside:
                move_in(places)
            else:
                replace(places)


@contextlib.contextmanager
def amended(target: Path, without: Iterable[str] = ()) -> Iterator[Path]:
    """A fresh directory whose files join an output, with its manifest, when the block ends well.

    Files of the output that have the same names are replaced, others stay. A kill amid the moves
    leaves some of them done; the next run to that place completes them.

    Args:
        target: the output, which has a manifest.
        without: names of files that go unless they are written anew.

    Raises:
        OutputError: it has none, or is not writable; another run is writing it; the disk is full.
    """
    target = resolved(target)
    with contextlib.ExitStack() as stack:
        with blamed(target):
            stack.enter_context(claimed(target))
            places = Places(target, True)
            stage = places.hidden(NEW)
            stage.mkdir()
        stack.callback(remove, stage)
        with blamed(target):
            yield stage
            whole = manifest.read(target)
            if whole is None:
                raise OutputError(f"{target}: {manifest.NAME}, its manifest, is missing.")
            new = {name: manifest.entry(stage / name) for name in manifest.files(stage)}
            kept = {name: entry for name, entry in whole["files"].items() if name not in without}
            whole["files"] = dict(sorted({**kept, **new}.items()))
            manifest.write_object(stage / manifest.NAME, whole)
            move_in(places)


def check_free(target: Path, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raise `OutputError` unless `target` may be (re)placed; takes the arguments of `staged`."""
    target = resolved(target)
    with blamed(target), contextlib.ExitStack() as stack:
        if target.parent.is_dir():
            stack.enter_context(claimed(target))
        examine(target, force, inputs)


def resolved(target: Path) -> Path:
    """A path without links, or `OutputError`."""
    with blamed(target):
        return Path(os.path.realpath(target))


@contextlib.contextmanager
def blamed(target: Path) -> Iterator[None]:
    """Every error of the system inside is about the output."""
    try:
        yield
    except OSError as e:
        raise OutputError(f"{target}: cannot be written: {e.strerror or e}.") from e


def lies_in(name: object, folder: Path) -> bool:
    """Whether the file name of an error lies in a folder."""
    return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(folder)


@contextlib.contextmanager
def claimed(target: Path) -> Iterator[Places]:
    """Keep other runs away from an output, and tidy what killed ones left there.

    On a file system without locks nothing is tidied, and a hidden folder that is there already
    makes the run fail.
    """
    places = Places(target, is_fixed(target))
    lock = places.hidden(LOCK)
    within = Places(target, True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(lock))
            if not places.inside and within.hidden(LOCK).exists():
                stack.enter_context(locks.locked(within.hidden(LOCK)))  # a mount point elsewhere
        except locks.Held as e:
            raise OutputError(
                f"{target}: another run is writing it. Wait for its end, or use another output."
            ) from e
        except OSError as e:
            if e.errno not in locks.UNSUPPORTED:
                raise
            lock.unlink(missing_ok=True)
        else:
            recover(within)
            if not places.inside:
                recover(places)
        yield places


def is_fixed(target: Path) -> bool:
    """Whether a folder cannot be renamed: a mount point, or its parent is not ours to change."""
    if not target.is_dir():
        return False
    return is_mount(target) or not os.access(target.parent, os.W_OK)


def is_mount(target: Path) -> bool:
    """Whether something is mounted here; `os.path.ismount` misses folders of the same disk."""
    if os.path.ismount(target):
        return True
    if not MOUNTS.exists():
        return False
    lines = MOUNTS.read_bytes().splitlines()
    points = (re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), x.split()[4]) for x in lines)
    return os.fsencode(target) in points


def recover(places: Places) -> None:
    """Tidy what a killed run left, with the lock held: complete its last steps, or undo them."""
    target, old = places.target, places.hidden(OLD)
    if places.inside and not target.is_dir():
        return
    if places.inside:
        if places.hidden(READY).is_dir():
            complete(places)
        old.unlink(missing_ok=True)
    elif old.is_dir() and not target.exists():
        old.rename(target)
    elif old.is_dir():
        shutil.rmtree(old)
    if places.hidden(NEW).is_dir():
        shutil.rmtree(places.hidden(NEW))


def examine(target: Path, force: bool, inputs: Iterable[Path]) -> None:
    """Raise `OutputError` unless a target is absent, empty, or an earlier output to replace."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{target}: is {kind(mode)}, needs to be a directory.")
    if not found(target):
        return
    for path in inputs:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(target):
            raise OutputError(f"{target}: holds the input {path}. Use another output.")
    if not force:
        raise OutputError(f"{target}: not empty. Use --force to replace it, or another output.")
    require_ours(target, target)


def kind(mode: int) -> str:
    """What a path that is no directory names."""
    kinds = (
        (stat.S_ISREG, "a file"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISLNK, "a link that leads nowhere"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")


def found(folder: Path) -> list[str]:
    """What lies in an output, hidden files of runs left out."""
    hidden = {LOCK, NEW, READY, OLD}
    return sorted(x for x in manifest.files(folder) if PurePosixPath(x).parts[0] not in hidden)


def written(folder: Path) -> set[str]:
    """The files of an earlier output; empty where the folder is none."""
    whole = manifest.read(folder)
    return earlier.names(folder) if whole is None else {manifest.NAME, *whole["files"]}


def require_ours(folder: Path, target: Path) -> None:
    """Raise `OutputError`, about `target`, unless every file in a folder is of an output."""
    ours = written(folder)
    if not ours:
        raise OutputError(
            f"{target}: not empty and not an earlier output ({manifest.NAME} that names its files "
            f"is missing), so --force will not replace it. Use another output."
        )
    strange = [name for name in found(folder) if name not in ours]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise OutputError(
            f"{target}: holds {strange[0]}{more}, no part of the earlier output, so --force will "
            f"not replace it. Move what is yours, or use another output."
        )


def replace(places: Places) -> None:
    """Put a finished stage in the target's place; what stood there goes last.

    What stood there is looked at once more when nobody reaches it by its name any longer: files
    that appeared at the last moment bring it back.
    """
    target, stage, old = places.target, places.hidden(NEW), places.hidden(OLD)
    if not target.is_dir():
        stage.rename(target)
    elif not found(target):
        shutil.copymode(target, stage)
        if os.name == "nt":
            target.rmdir()
        stage.rename(target)  # POSIX: replaces an empty folder, and fails on any other
    elif exchange(stage, target):
        try:
            require_ours(stage, target)
        except BaseException:
            exchange(stage, target)
            raise
        shutil.copymode(stage, target)
    else:
        target.rename(old)
        try:
            require_ours(old, target)
            stage.rename(target)
        except BaseException:  # Ctrl-C between the two renames, too
            old.rename(target)
            raise
        remove(old)
    synchronize(target.parent)


def move_in(places: Places) -> None:
    """Move a finished stage's files into the target, which is a mount point.

    From the moment that the stage is called ready, a run that is killed is completed by the next.
    """
    target, adopted = places.target, places.hidden(OLD)
    if found(target) and manifest.read(target) is None:  # of a version without manifests
        listed: dict[str, object] = {name: {} for name in found(target) if name != manifest.NAME}
        manifest.write_object(adopted, {"writer": manifest.WRITER, "files": listed})
        adopted.replace(target / manifest.NAME)
    synchronize(places.hidden(NEW))
    places.hidden(NEW).rename(places.hidden(READY))
    synchronize(target)
    complete(places)


def complete(places: Places) -> None:
    """Move the files of a stage that is ready: new ones in, old ones out, the manifest last."""
    target, ready = places.target, places.hidden(READY)
    new = manifest.read(ready)
    if new is not None:
        for name in new["files"]:
            if (ready / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (ready / name).replace(target / name)
        old = manifest.read(target) or {"files": {}}
        for name in old["files"].keys() - new["files"].keys():
            (target / name).unlink(missing_ok=True)
            remove_empty(x for x in (target / name).parents if target in x.parents)
        synchronize(target)
        (ready / manifest.NAME).replace(target / manifest.NAME)
    shutil.rmtree(ready)
    synchronize(target)


def synchronize(folder: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a stage, or what it was exchanged for; Ctrl-C meanwhile does not stop that."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those folders that are empty, innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
