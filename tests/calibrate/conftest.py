"""The demo's float decoder, a few tokens that it sampled, and one finished calibration of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from surgery.calibrate import job
from surgery.calibrate.batches import batches_of
from surgery.calibrate.sampler import Sampler
from surgery.calibrate.sweep import Batch, Measured
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.jobs.build import rounded
from surgery.jobs.calibrate import prepared

TOKENS = 512
"""Of text: two rows."""


@dataclass(frozen=True)
class Calibration:
    """A finished calibration and what went in."""

    work: job.Work
    batches: list[Batch]
    rows: Batch
    measured: list[Measured]


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw export of the demo; RAW_EXPORT=DIR in the environment takes one that is there."""
    if "RAW_EXPORT" in os.environ:
        return Path(os.environ["RAW_EXPORT"])
    folder = tmp_path_factory.mktemp("export") / "raw"
    subprocess.run([sys.executable, "-m", "export_min", "-o", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def facts(raw: Path) -> Facts:
    return Facts.load(raw, Options(max_length=4096))


@pytest.fixture(scope="session")
def package(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package to sample from."""
    folder = tmp_path_factory.mktemp("rounded") / "package"
    rounded(facts, folder)
    return folder


@pytest.fixture(scope="session")
def calibration(
    facts: Facts, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    work = prepared(facts, tmp_path_factory.mktemp("calibration"), TOKENS)
    batches, rows = batches_of(Sampler(package), TOKENS, list(work.model.graph.inputs))
    measured = job.sweep(work, batches, rows)
    return Calibration(work, batches, rows, measured)


@pytest.fixture
def elsewhere(calibration: Calibration, tmp_path: Path) -> job.Work:
    """The same work with an empty folder."""
    return replace(calibration.work, folder=tmp_path / "again")
