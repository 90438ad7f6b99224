"""The manifest of an output: what it lists, what it notices, which folders it makes ours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from surgery.base import manifest, staging
from surgery.base.errors import OutputError
from surgery.base.staging import amended, check_free, staged

ABOUT = {"kind": "graphs", "versions": {"a": "1"}, "options": {"b": None}}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    with staged(tmp_path / "out", about=ABOUT) as stage:
        (stage / "model.onnx").write_bytes(b"a graph")
        (stage / "model.onnx.data").write_bytes(bytes(5000))
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_text("deep")
    return tmp_path / "out"


def test_entries(output):
    whole = json.loads((output / "surgery.json").read_text())
    assert {key: whole[key] for key in ABOUT} == ABOUT and whole["writer"] == manifest.WRITER
    assert sorted(whole["files"]) == ["deep/file", "model.onnx", "model.onnx.data"]
    digest = hashlib.sha256(b"a graph").hexdigest()
    assert whole["files"]["model.onnx"] == {"size": 7, "sha256": digest}
    assert not list(manifest.changes(output))


CHANGES = {
    "a byte": (lambda out: (out / "model.onnx.data").write_bytes(bytes(4999) + b"\1"), "bytes"),
    "a size": (lambda out: (out / "model.onnx").write_bytes(b""), "has 0 bytes, 7 when written"),
    "gone": (lambda out: (out / "deep" / "file").unlink(), "is missing"),
    "more": (lambda out: (out / "more").write_text(""), "is not listed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(output, name):
    change, problem = CHANGES[name]
    change(output)
    assert any(problem in found for _, found in manifest.changes(output))


def test_changes_without_a_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"no surgery\.json"):
        list(manifest.changes(tmp_path))


FOREIGN = [
    "{}",
    "[]",
    "null",
    "not JSON",
    "[" * 100_000,
    '{"writer": "somebody", "files": {"mine.txt": {}}}',
    '{"writer": "qwen3vl-surgery"}',
    '{"writer": "qwen3vl-surgery", "files": ["mine.txt"]}',
    '{"writer": "qwen3vl-surgery", "files": {"../mine.txt": {}, "mine.txt": {}}}',
    '{"writer": "qwen3vl-surgery", "files": {"/mine.txt": {}, "mine.txt": {}}}',
    '{"writer": "qwen3vl-surgery", "files": {"other.txt": {}}}',
    '{"graphs": {}}',
    '{"graphs": {"model.onnx": []}}',
]


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("name", ["surgery.json", "manifest.json", "genai_config.json"])
def test_folders_of_others(tmp_path, name, text):
    """A file with the right name makes no folder ours."""
    (tmp_path / name).write_text(text)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--force will not replace it"):
        check_free(tmp_path, force=True)


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt", "more/", "surgery.json.bak"])
def test_files_of_others(output, name):
    path = output / name
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises(OutputError, match=f"holds {name}, no part of the earlier output"):
        check_free(output, force=True)


EARLIER = {
    "export": {
        "manifest.json": {"headers": {}, "config": {}, "versions": {}, "source": "demo"},
        "vision.onnx": None,
        "decoder.onnx": None,
    },
    "package": {
        "genai_config.json": {"model": {"type": "qwen3_vl"}},
        "README.md": "# A package\nM-RoPE is exact, pictures of any size and number.",
        "model.onnx": None,
        "qwen3vl-vision.onnx.data": None,
        "tokenizer.json": None,
    },
    "graphs": {
        "surgery.json": {"recipe": "any", "graphs": {"layer.onnx": [{"pass": "dims"}]}},
        "layer.onnx": None,
        "layer.onnx.data": None,
    },
}


@pytest.mark.parametrize("kind", EARLIER)
@pytest.mark.parametrize("fixed", [False, True])
def test_outputs_of_earlier_versions(tmp_path, monkeypatch, kind, fixed):
    """Those have no manifest; they are replaced, unless there is anything else in them."""
    monkeypatch.setattr("surgery.base.staging.is_fixed", lambda target: fixed)
    target = tmp_path / "out"
    target.mkdir()
    for name, value in EARLIER[kind].items():
        (target / name).write_text(value if isinstance(value, str) else json.dumps(value))
    (target / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds mine\.txt"):
        check_free(target, force=True)
    (target / "mine.txt").unlink()
    with staged(target, force=True, about=ABOUT) as stage:
        (stage / "new").write_text("new")
    assert sorted(path.name for path in target.iterdir()) == ["new", "surgery.json"]
    assert not list(manifest.changes(target))


def test_inputs(output, tmp_path):
    """An output that holds what the run reads is refused, through links too."""
    (tmp_path / "link").symlink_to(output)
    for read in (output, output / "model.onnx", tmp_path / "link" / "model.onnx"):
        with pytest.raises(OutputError, match="holds the input"):
            check_free(output, force=True, inputs=[read])
    check_free(output, force=True, inputs=[tmp_path])


def amend(output: Path) -> None:
    with amended(output, without=["deep/file"]) as stage:
        (stage / "model.onnx").write_bytes(b"another")
        (stage / "more").write_text("more")


def test_an_output_is_amended(output):
    """Other keys and files stay; what goes and what comes is in the manifest."""
    amend(output)
    whole = json.loads((output / "surgery.json").read_text())
    assert {key: whole[key] for key in ABOUT} == ABOUT
    assert sorted(manifest.files(output)) == [
        "model.onnx",
        "model.onnx.data",
        "more",
        "surgery.json",
    ]
    assert (output / "model.onnx").read_bytes() == b"another"
    assert not list(manifest.changes(output))
    check_free(output, force=True)


@pytest.mark.parametrize("moves", range(4))
def test_an_amendment_that_is_cut_off_is_completed(output, monkeypatch, moves):
    """By the next run to that place, whichever move was the last: graph, other file, manifest."""
    left = iter(range(moves))

    class Dying(type(output)):
        def replace(self, target):
            if self.parent.name == staging.READY and next(left, None) is None:
                raise KeyboardInterrupt
            return super().replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "Path", Dying)
        if moves == 3:
            amend(output)
        else:
            with pytest.raises(KeyboardInterrupt):
                amend(output)
            assert (output / staging.READY).is_dir()
    check_free(output, force=True)
    assert not list(manifest.changes(output))
    assert (output / "more").read_text() == "more" and not (output / "deep").exists()


def test_a_failed_amendment_changes_nothing(output):
    with pytest.raises(ZeroDivisionError), amended(output) as stage:
        (stage / "more").write_text("more")
        raise ZeroDivisionError
    assert not list(manifest.changes(output))
    (output / "surgery.json").unlink()
    with pytest.raises(OutputError, match="manifest, is missing"):
        amend(output)
    assert not (output / "more").exists()
