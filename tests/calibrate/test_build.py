"""A calibrated package, from the command to the check of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from surgery.base.demo import DEMO
from surgery.base.errors import OutputError
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.jobs import build as builds
from surgery.jobs import calibrate
from surgery.package.genai_config import DECODER
from surgery.verify import verify_package
from surgery.verify.opened import Opened

pytestmark = pytest.mark.nightly  # builds calibrated packages, which takes minutes

BALANCED = Options(preset="balanced", bits=4.6, keep="layers.1.self_attn.q_proj", max_length=4096)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    """Calibrations of this module, with few tokens."""
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setattr(calibrate.calibrated, "__defaults__", (folder, 512))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def built(raw: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.build(raw, tmp_path_factory.mktemp("built") / "package", BALANCED)


def test_the_second_build_is_equal_and_samples_nothing(built, raw, home, tmp_path, monkeypatch):
    """Every byte; the finished calibration is all that is kept of the first."""
    (folder,) = home.iterdir()
    assert {path.name for path in folder.iterdir()} == {"measured.json", "weights"}

    def never(*args):
        raise AssertionError("tokens were sampled again")

    monkeypatch.setattr(calibrate, "Sampler", never)
    again = builds.build(raw, tmp_path / "package", BALANCED)
    names = sorted(path.name for path in built.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((built / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_from_nothing_it_is_equal_too(built, home, facts, tmp_path):
    """Tokens are sampled anew, and every byte of the calibration is the same."""
    other = tmp_path / "other"
    calibrate.calibrated(facts, builds.rounded, other, 512)
    names = sorted(path.relative_to(home) for path in home.rglob("*") if path.is_file())
    assert len(names) == 29
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((home / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_the_file_lists_every_matrix(built):
    """Formats as in the graph; the head beside them, which no plan covers."""
    told = json.loads((built / "quantization.json").read_text())
    assert told["measured"] and told["bits"] <= 4.6
    assert sum(row["share"] for row in told["weights"]) == pytest.approx(1)
    rows = {row["name"]: row for row in told["weights"] + told["rounded"]}
    assert len(told["rounded"]) == 1 and len(rows) == 29
    seen = set()
    for node in Opened(built).graphs["decoder"].graph:
        if node.op_type == "MatMulNBits":
            name = node.inputs[1].name.removesuffix(".packed")
            seen.add(name)
            assert rows[name]["bits"] == node.attributes["bits"].as_int()
            assert rows[name]["block"] == node.attributes["block_size"].as_int()
            assert rows[name]["shape"] == [node.attributes[a].as_int() for a in "NK"]
            parts = [value.const_value.nbytes for value in node.inputs[1:] if value is not None]
            assert rows[name]["nbytes"] == sum(parts)
    left = set(rows) - seen
    assert [rows[name]["bits"] for name in left] == [None]
    assert all("layers.1.self_attn.q_proj" in name for name in left)


def test_verify_passes_it(built):
    assert Opened(built).calibrated
    report = verify_package(built, DEMO)
    assert report.ok, report


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25])
def test_verify_sees_one_wrong_scale(built, tmp_path, factor):
    """Of one block among thousands: neither the matrix nor the logits would show it."""
    folder = tmp_path / "package"
    shutil.copytree(built, folder)
    model = ir.load(folder / DECODER)
    node = next(
        n for n in model.graph if n.op_type == "MatMulNBits" and n.attributes["bits"].as_int() == 4
    )
    scales = node.inputs[2].const_value.numpy().copy()
    scales[3, 0] *= np.float32(factor)
    node.inputs[2].const_value = ir.tensor(scales, name=node.inputs[2].name)
    ir.save(model, folder / DECODER)
    name = node.inputs[1].name.removesuffix(".packed")
    rewrite_digest(folder)
    report = verify_package(folder, DEMO)
    problems = [f for group in report.findings.values() for f in group if f.problem]
    assert any(name in f.what and "1 blocks are far" in f.problem for f in problems), problems


def rewrite_digest(folder: Path) -> None:
    """Let the manifest agree, so that only the weights are wrong."""
    from surgery.base import manifest

    whole = manifest.read(folder)
    assert whole is not None
    about = {key: value for key, value in whole.items() if key not in ("files", "writer")}
    (folder / manifest.NAME).unlink()
    manifest.write(folder, about)


def test_wrong_options_are_found_before_any_work(raw, home, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("work was done")

    monkeypatch.setattr(calibrate, "run", never)
    for options, line in (
        (Options(preset="best", bits=4.0, max_length=4096), "--bits 4: the smallest"),
        (Options(preset="best", keep="(", max_length=4096), "--keep (: no regular"),
    ):
        with pytest.raises(calibrate.job.plans.UserError, match=line.replace("(", r"\(")):
            builds.build(raw, tmp_path / "package", options)
    assert not (tmp_path / "package").exists()


def test_what_decides_the_outcome_decides_the_folder(raw, facts):
    """Formats and scales do; bits, patterns and lengths do not."""
    name = calibrate.identity(facts, 512)

    def other(tokens=512, **options):
        return calibrate.identity(Facts.load(raw, Options(max_length=4096, **options)), tokens)

    assert other() == other(bits=6.0, keep="x", preset="best", hidden_states=True) == name
    changed = [
        other(tokens=1024),
        other(symmetric=True),
        other(block_size=32),
        other(execution_provider="cuda"),
    ]
    assert len({name, *changed}) == 5


def test_one_run_at_a_time(tmp_path):
    with (
        calibrate.claimed(tmp_path),
        pytest.raises(OutputError, match="another run is calibrating"),
        calibrate.claimed(tmp_path),
    ):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_the_rounded_package_is_gone(tmp_path, error):
    folder = tmp_path / "rounded"
    folder.mkdir()
    (folder / "left by a killed run").touch()
    with (
        pytest.raises((KeyboardInterrupt, OutputError)),
        calibrate.temporary(folder) as place,
    ):
        assert not place.exists()
        place.mkdir()
        (place / "file").touch()
        raise error(28, "No space left on device")
    assert not folder.exists()
