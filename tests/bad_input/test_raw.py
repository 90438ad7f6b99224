"""Raw exports that cannot be built from, and options that cannot be met."""

from __future__ import annotations

import shutil

import pytest

import surgery
from surgery.__main__ import main
from surgery.base.errors import PackageError


@pytest.fixture
def build(refused, raw, tmp_path):
    """Build from the damaged export; returns the line."""
    return lambda *words: refused(main, "-i", raw, "-o", tmp_path / "package", *words)


def test_no_export(refused, tmp_path):
    line = refused(main, "-i", tmp_path / "missing", "-o", tmp_path / "package")
    assert "manifest.json missing" in line and "python -m export_min" in line


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {}}'])
def test_a_broken_manifest(build, raw, text):
    (raw / "manifest.json").write_text(text)
    assert "manifest.json" in build()


def test_a_missing_graph(build, raw):
    (raw / "decoder.onnx").unlink()
    assert "decoder.onnx: no such file" in build()


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_graph(build, raw, keep):
    path = raw / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    assert "decoder" in build()


def test_graphs_in_each_others_place(build, raw):
    (raw / "decoder.onnx").rename(raw / "spare.onnx")
    (raw / "vision.onnx").rename(raw / "decoder.onnx")
    (raw / "spare.onnx").rename(raw / "vision.onnx")
    assert "graph" in build()


def test_a_checkpoint_that_went_away(build, moved):
    shutil.rmtree(moved)
    assert "model.safetensors" in build() or str(moved) in build()


def test_a_checkpoint_that_changed(build, moved):
    path = moved / "model.safetensors"
    data = bytearray(path.read_bytes())
    place = data.index(b"BF16")
    data[place : place + 4] = b"F16 "
    path.write_bytes(data)
    assert "model.safetensors" in build()


@pytest.mark.parametrize("part", ["vision", "embedding", "decoder"])
def test_a_graph_whose_checkpoint_went_away(raw, moved, part):
    """As a library: the same line as from a build, before anything is read."""
    path = moved / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(PackageError, match=r"model.safetensors: changed since the export"):
        surgery.load(raw / f"{part}.onnx")
    path.unlink()
    with pytest.raises(PackageError, match=r"model.safetensors: missing; .* or export again\."):
        surgery.load(raw / f"{part}.onnx")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_tokenizer_that_went_away(build, moved, name):
    (moved / name).unlink()
    assert name in build()


@pytest.mark.parametrize(
    "words", [("--image-size", "100"), ("--image-size", "0"), ("--max-length", "0")]
)
def test_options_that_cannot_be_met(build, words):
    assert words[0] in build(*words)


@pytest.mark.parametrize("words", [("--only", "feature_gather"), ("--skip", "fold")], ids=" ".join)
def test_passes_that_need_others(raw, capsys, words):
    """A pass that meets a graph which no earlier pass has prepared says so."""
    assert main(["-i", str(raw), *words]) == 2
    assert "without the passes that were left out" in capsys.readouterr().err.splitlines()[-1]


def test_a_precision_that_the_provider_has_not(build):
    assert "attention with a cache in float16 only" in build("-e", "cuda", "-t", "fp32")


@pytest.mark.parametrize("words", [(), ("-p", "int8", "-t", "fp32")])
def test_a_pattern_that_is_no_regular_expression(build, words):
    assert "--keep (: no regular expression" in build("--keep", "(", *words)
