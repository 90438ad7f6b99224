"""`--dump`: texts whose diffs show a pass, graphs over one set of weights."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest

from surgery.__main__ import main
from surgery.rewrite import view


@pytest.fixture(scope="module")
def dump(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump") / "steps"
    words = ["-i", str(raw), "--quiet", "--graph", "decoder", "--dump", str(folder)]
    assert main([*words, "--dump-weights", "copy"]) == 0
    return folder


def test_a_step_a_file(dump: Path) -> None:
    run = json.loads((dump / "run.json").read_text())
    stems = [stage["stem"] for stage in run["graphs"]["decoder"]]
    assert stems[:3] == ["00_raw", "01_dims", "02_fold"]
    for stem in stems:
        assert (dump / "decoder" / f"{stem}.txt").is_file()
        assert (dump / "decoder" / f"{stem}.onnx").is_file()


def test_diff_shows_the_pass_and_nothing_else(dump: Path) -> None:
    (before,) = (dump / "decoder").glob("*_silu.txt")
    (after,) = (dump / "decoder").glob("*_last_logits.txt")
    lines = view.diff(before.read_text(), after.read_text()).splitlines()[2:]
    removed = [line for line in lines if line.startswith("-")]
    added = [line for line in lines if line.startswith("+")]
    assert [line.split(" ")[0] for line in removed] == ["-logits", "-output"]
    assert len(added) == 3 and " = Slice(" in added[0]


def test_two_runs_are_byte_identical(dump: Path, raw: Path, tmp_path: Path) -> None:
    words = ["-i", str(raw), "--quiet", "--graph", "decoder", "--dump", str(tmp_path)]
    assert main([*words, "--dump-weights", "copy"]) == 0
    for path in sorted((dump / "decoder").iterdir()):
        assert path.read_bytes() == (tmp_path / "decoder" / path.name).read_bytes(), path.name


def test_every_graph_loads_in_onnxruntime(dump: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    for path in sorted((dump / "decoder").glob("*.onnx")):
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_weights_are_linked_and_transformed_ones_shared(raw: Path, tmp_path: Path) -> None:
    words = ["-i", str(raw), "--quiet", "--graph", "decoder", "--dump", str(tmp_path)]
    assert main(words) == 0
    folder = tmp_path / "decoder"
    assert (folder / "model.safetensors").is_symlink()
    assert main([*words, "--dump-weights", "zeros"]) == 0, "an earlier dump is replaced"
    assert (folder / "weights.data").stat().st_blocks < 200 * 8, "holes but for made constants"


def test_a_directory_with_something_else_is_left_alone(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = tmp_path / "steps"
    steps.mkdir()
    (steps / "mine").write_text("")
    words = ["-i", str(raw), "-o", str(tmp_path / "package"), "--dump", str(steps)]
    assert main(words) == 2
    assert "not empty and not an earlier dump" in capsys.readouterr().err


def test_the_package_is_the_same_with_and_without(raw: Path, tmp_path: Path) -> None:
    plain, watched, steps = (tmp_path / name for name in ("plain", "watched", "steps"))
    assert main(["-i", str(raw), "-o", str(plain), "--quiet"]) == 0
    assert main(["-i", str(raw), "-o", str(watched), "--quiet", "--dump", str(steps)]) == 0
    names = sorted(path.name for path in plain.iterdir())
    assert names == sorted(path.name for path in watched.iterdir())
    for name in names:
        assert (plain / name).read_bytes() == (watched / name).read_bytes(), name
