"""Ranges for an 8-bit cache, measured before the package is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from surgery.base.console import announce, progress
from surgery.calibrate.ranges import TOKENS, cache_ranges
from surgery.calibrate.sampler import Sampler
from surgery.calibrate.state import Results
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.jobs.calibrate import (
    CONTEXT,
    FOLDER,
    PERIOD,
    SEED,
    Build,
    claimed,
    identity,
    temporary,
)
from surgery.passes.attention.quantized_cache import Ranges

FILE = "cache_ranges.npz"
"""Where ranges are kept, in a folder by what decides them."""


def with_ranges(facts: Facts, build: Build, folder: Path = FOLDER) -> Facts:
    """The facts with the ranges of the cache, where the options want it in 8 bits.

    Args:
        facts: the raw export and the options.
        build: writes a package with the given facts into a new directory; tokens are sampled from
            a package that is rounded without calibration and has a float cache.
        folder: where results are kept; a second build takes them from there.

    Raises:
        OutputError: the folder cannot be written, or another run is at the same ranges.
    """
    if not facts.options.quantized_cache:
        return facts
    chosen = Options(max_length=CONTEXT, symmetric=facts.options.symmetric)
    plain = dataclasses.replace(facts, options=chosen, plan=None)
    kept = Results(folder / f"cache-{identity(plain, TOKENS)[:16]}")
    ranges = kept.read(FILE, read)
    if ranges is None:
        with claimed(kept.folder), progress(period=PERIOD) as bar:
            task = bar.add_task("ranges of the cache", total=None)
            with temporary(kept.folder / "rounded") as rounded:
                build(plain, rounded)
                ranges = cache_ranges(
                    Sampler(rounded, SEED),
                    lambda done, total: bar.update(task, completed=done, total=total),
                )
            arrays: dict[str, Any] = dict(ranges)
            kept.write(FILE, lambda file: np.savez(file, **arrays))
    announce(f"8-bit cache: ranges of {len(ranges)} tensors")
    return dataclasses.replace(facts, cache_ranges=ranges)


def read(file: Path) -> Ranges:
    """Ranges that an earlier build measured."""
    with file.open("rb") as opened, np.load(opened) as arrays:
        return dict(arrays)
