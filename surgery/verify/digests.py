"""Every file of a package has the bytes that were written."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.base import manifest
from surgery.verify.finding import Finding
from surgery.verify.opened import Opened


def check_digests(package: Opened) -> Iterator[Finding]:
    """Hold every file to its size and SHA-256 in the manifest; nothing may be missing or added.

    This reads every byte of the package: about a second of one core for each GB.
    """
    if manifest.read(package.folder) is None:
        yield Finding(manifest.NAME, problem="is missing, so no digest can be checked")
        return
    changed = list(manifest.changes(package.folder))
    for name, problem in changed:
        yield Finding(name, problem=problem)
    if not changed:
        count = sum(1 for _ in manifest.files(package.folder))
        yield Finding("digests", f"{count} files as they were written")
