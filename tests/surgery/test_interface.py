"""The public interface: its names, and load → run → save as a script uses them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graph import feeds, write

import surgery
from surgery import Graph, Outcome, UserError, load
from surgery import passes as p
from surgery.base.errors import OutputError
from surgery.rewrite.contract import ExpectationError, Pass, PreconditionError

NAMES = {
    *("Graph", "Options", "Outcome", "Runtime", "UserError"),
    *("apply", "build", "explain", "load", "passes", "verify_package"),
}
PASSES = {
    *("Attention", "FixedCache", "FoldedAttention", "GroupQueryAttention", "MultiHeadAttention"),
    "PackedAttention",
    *("AttentionBias", "AttentionHeads", "PlainAttention", "QkvSplit", "QuantizedCache"),
    "RowGuard",
    *("BiasGelu", "Gelu", "LayerScale", "MixtureOfExperts", "Silu"),
    *("HeadNorm", "LayerNorm", "RmsNorm", "SkipBias", "SkipLayerNorm", "SkipRmsNorm"),
    *("HiddenStates", "LastLogits", "Shortlist"),
    *("GatherNBits", "LongInput", "MatMulInt8", "MatMulNBits", "MixtureOfExpertsNBits"),
    *("FreqTable", "HalfAngles", "LateRepeat", "MultimodalRotary", "Rotary", "RotaryRows"),
    *("Dims", "Fold", "Lengths", "Noop", "Opset", "ReshapeChain", "Shapes", "Slices"),
    "StaticReshape",
    *("DeepStack", "FeatureConcat", "FeatureGather", "FixedGrid", "JoinedEmbeds", "PatchEmbed"),
    *("TokenEmbeds", "ZeroBias"),
    *("InputNames", "PlainLookup", "PositionLimit"),
    *("FusedTranspose", "Half", "LateCast", "PlainLinear", "RightWeight", "TableCast"),
    *("WeightCast", "WeightShift", "WeightTranspose"),
}
TIDY = [
    *("shapes", "dims", "fold", "shapes", "dims", "noop", "weight_cast", "static_reshape"),
    *("lengths", "zero_bias"),
]


def test_names_of_the_library() -> None:
    """A name that comes or goes is a decision: change this list with it."""
    assert set(surgery.__all__) == NAMES and len(surgery.__all__) == len(NAMES)


def test_names_of_the_passes() -> None:
    assert set(p.__all__) == {*PASSES, "TIDY"} and len(p.__all__) == len(PASSES) + 1
    assert all(issubclass(getattr(p, name), Pass) for name in PASSES)
    assert [work.name for work in p.TIDY] == TIDY


def session(path: Path, weights: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if weights is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(weights))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(params=["inside", "beside"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A graph with its weights inside the file, or in external data beside it."""
    return write(tmp_path / "layer.onnx", external=request.param == "beside")


def test_load_run_save(path: Path, tmp_path: Path) -> None:
    graph = load(path).run(*p.TIDY, p.RmsNorm(expect=1), p.Silu(expect=1))
    file = graph.save(tmp_path / "out")
    assert file == tmp_path / "out" / "layer.onnx"
    assert {f.name for f in file.parent.iterdir()} == {
        *("layer.onnx", "layer.onnx.data", "surgery.json"),
    }
    ops = {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
    assert {"RMSNormalization", "QuickGelu"} <= ops and not {"Pow", "Sigmoid"} & ops
    before, after = session(path), session(file)
    for shape in ((1, 1), (2, 5), (3, 17)):
        (want,), (got,) = (s.run(None, feeds(*shape)) for s in (before, after))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_quantized_weights_of_any_graph(path: Path, tmp_path: Path) -> None:
    """Each product with a weight is a site, wherever the weight lies."""
    graph = load(path).run(*p.TIDY, p.MatMulNBits(bits=4, block=32, expect=3))
    file = graph.save(tmp_path / "out")
    (want,), (got,) = (s.run(None, feeds()) for s in (session(path), session(file)))
    spread = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-4 < spread < 0.1
    raw, packed = 4 * 3 * 64 * 96, (file.parent / "layer.onnx.data").stat().st_size
    assert packed < raw / 5, "four bits and a scale for 32 numbers"


def test_a_raw_export(raw: Path, tmp_path: Path) -> None:
    """Weights stay in the checkpoint, where the manifest says, until the result is saved."""
    graph = load(raw / "vision.onnx")
    graph = graph.run(*p.TIDY, p.FreqTable(rows=64), p.QkvSplit(expect=4), p.Rotary(expect=8))
    file = graph.save(tmp_path / "out")
    manifest = json.loads((raw / "manifest.json").read_text(encoding="utf-8"))
    before, after = session(raw / "vision.onnx", Path(manifest["weights"])), session(file)
    rng = np.random.default_rng(0)
    for grids in ([[1, 4, 6]], [[1, 2, 8], [2, 4, 4]]):
        grid = np.array(grids, np.int64)
        pixels = rng.standard_normal((int(grid.prod(-1).sum()), 1536)).astype(np.float32)
        given = {"pixel_values": pixels, "image_grid_thw": grid}
        for want, got in zip(before.run(None, given), after.run(None, given), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_outcomes_are_values(path: Path) -> None:
    """One for each pass in its order, with counts and near-misses; nobody can change them."""
    loaded = load(path)
    graph = loaded.run(*p.TIDY, p.RmsNorm(), p.Silu(), p.Gelu())
    assert [o.name for o in graph.outcomes] == [*TIDY, "rms_norm", "silu", "gelu"]
    norm, silu, gelu = graph.outcomes[-3:]
    assert (norm.sites, silu.sites, gelu.sites) == (1, 1, 0)
    assert (norm.before - norm.after, silu.before - silu.after) == (6, 1)
    assert str(silu) == f"silu: 1 sites, {silu.before} -> {silu.after} nodes"
    assert silu == Outcome("silu", 1, silu.before, silu.after, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        silu.sites = 2  # type: ignore[misc]
    assert loaded.outcomes == () and "Sigmoid(" in loaded.text()


def test_near_misses_are_values(tmp_path: Path) -> None:
    """An exponent of 3 is no norm; the miss says what was needed and what was found."""
    path = write(tmp_path / "cubes.onnx", text=("two = {2}", "two = {3}"))
    (miss,) = load(path).run(*p.TIDY, p.RmsNorm()).outcomes[-1].misses
    assert miss.condition == "an exponent of 2"
    assert str(miss).endswith(f"needs {miss.condition}; found {miss.found}")


def test_another_number_of_sites_than_expected(path: Path) -> None:
    """The error names the pass, what was found and what was expected; the graph is as before."""
    graph = load(path).run(*p.TIDY)
    text = str(graph)
    with pytest.raises(ExpectationError, match=r"^rms_norm: 1 sites, expected 28\."):
        graph.run(p.RmsNorm(expect=28))
    assert str(graph) == text
    assert issubclass(ExpectationError, UserError)


def test_a_pass_before_those_that_it_needs(path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"^rms_norm: needs dims, fold, noop .*TIDY"):
        load(path).run(p.RmsNorm())
    with pytest.raises(PreconditionError, match=r"^rms_norm: needs noop "):
        load(path).run(*p.TIDY[:3], p.RmsNorm())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
                                     RuntimeError("stopped")])  # fmt: skip
def test_a_write_that_fails_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Neither a part of the output nor a folder made for it; an earlier output stays whole."""
    graph, earlier = load(path).run(*p.TIDY), tmp_path / "earlier"
    graph.save(earlier)
    places = sorted(tmp_path.rglob("*"))
    bytes_of = [place.read_bytes() for place in places if place.is_file()]

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(ir, "save", fail)
    expected = OutputError if isinstance(failure, OSError) else RuntimeError
    with pytest.raises(expected):
        graph.save(tmp_path / "new" / "deep")
    with pytest.raises(expected):
        graph.save(earlier, force=True)
    assert sorted(tmp_path.rglob("*")) == places
    assert [place.read_bytes() for place in places if place.is_file()] == bytes_of


def test_a_folder_with_something_in_it_is_left_alone(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    graph: Graph = load(path)
    for force in (False, True):
        with pytest.raises(OutputError, match="not empty"):
            graph.save(folder, force=force)
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]
