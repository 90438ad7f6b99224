"""A calibrated package of a mixture of experts, from the command to the check of it."""

from __future__ import annotations

import json

import pytest

from surgery.engine.options import Options
from surgery.jobs import build as builds
from surgery.jobs import calibrate
from surgery.verify import verify_package
from surgery.verify.opened import Opened

pytestmark = pytest.mark.nightly  # builds a calibrated package, which takes minutes


def test_experts_are_calibrated_and_verified(cases, tmp_path, monkeypatch, capsys):
    """Every expert of every layer; a second build takes them from where they were kept."""
    monkeypatch.setattr(calibrate.calibrated, "__defaults__", (tmp_path / "kept", 1024))
    case = cases("experts")
    options = Options(preset="balanced", max_length=4096)
    folder = builds.build(case.raw, tmp_path / "package", options)
    told = json.loads((folder / "quantization.json").read_text())
    assert [row["shape"] for row in told["experts"]] == [[8, 192, 64], [8, 64, 96]] * 4
    assert sum(row["own"] for row in told["experts"]) > 32
    assert all(0 < row["error"] < 0.3 for row in told["experts"])
    assert not {r["name"] for r in told["experts"]} & {r["name"] for r in told["rounded"]}
    assert {row["name"] for row in told["experts"]} <= Opened(folder).calibrated
    report = verify_package(folder, case.checkpoint)
    assert report.ok, report
    again = builds.build(case.raw, tmp_path / "again", options)
    assert "calibration taken from" in capsys.readouterr().err.replace("\n", " ")
    names = [path.name for path in folder.iterdir() if path.suffix == ".data"]
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
