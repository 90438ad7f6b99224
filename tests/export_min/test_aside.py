"""The process that traces a part of the graphs beside this one."""

from __future__ import annotations

import errno
import json

import pytest

from export_min import aside, export, open_checkpoint


def test_graphs_are_the_same_with_one_core_and_with_two(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = export(None, tmp_path / "alone")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    shared = export(None, tmp_path / "shared")
    for name in ("vision", "embedding", "decoder"):
        one, two = (folder / f"{name}.onnx" for folder in (alone, shared))
        assert one.read_bytes() == two.read_bytes(), name
    assert json.loads((alone / "manifest.json").read_text())["headers"]


def test_a_part_that_fails_is_reported(tmp_path):
    fault = "tracing vision failed:(.|\n)*no-such-checkpoint"
    source = open_checkpoint(None)
    lost = type(source)(tmp_path / "no-such-checkpoint", "lost")
    with pytest.raises(RuntimeError, match=fault), aside.meanwhile(lost, tmp_path, ("vision",)):
        pass


def test_a_part_that_cannot_be_written_is_the_disks_fault(tmp_path):
    nowhere = tmp_path / "nowhere"
    with (
        pytest.raises(OSError, match="No such file") as caught,
        aside.meanwhile(open_checkpoint(None), nowhere, ("embedding",)),
    ):
        pass
    assert caught.value.errno == errno.ENOENT


def test_a_failure_here_ends_the_other_process(tmp_path):
    with (
        pytest.raises(ValueError, match="here"),
        aside.meanwhile(open_checkpoint(None), tmp_path, ("vision",)),
    ):
        raise ValueError("here")
    assert not list(tmp_path.iterdir())
