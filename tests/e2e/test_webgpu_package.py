"""A package for WebGPU where its plugin is not installed: one line that says what to install."""

from __future__ import annotations

import onnx
import pytest

from surgery.__main__ import main
from surgery.base import plugins
from surgery.engine.options import Options

INSTALL = "webgpu needs a plugin of onnxruntime: pip install onnxruntime-ep-webgpu"


@pytest.fixture
def package(demo, monkeypatch):
    """The demo's, in a process that has no plugin."""
    absent = plugins.Plugin("no_such_module", "onnxruntime-ep-webgpu")
    monkeypatch.setattr(plugins, "PLUGINS", {"webgpu": absent})
    options = Options(text_precision="fp32", execution_provider="webgpu", max_length=4096)
    return demo.build("fp32-webgpu", options)


def test_chat_says_what_to_install(package, capsys):
    assert main(["chat", str(package), "hi"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].endswith(INSTALL)


def test_the_card_registers_the_plugin(package, demo):
    """Before the package is opened, and only where there is one."""
    words = "og.register_execution_provider_library("
    card = (package / "README.md").read_text(encoding="utf-8")
    assert 0 < card.find(words) < card.find("og.Model(")
    assert words not in (demo.fp32 / "README.md").read_text(encoding="utf-8")


def test_verify_runs_on_the_cpu(package, capsys):
    assert main(["verify", str(package), "--no-digests"]) == 0
    out = capsys.readouterr().out
    assert f"cpu: {INSTALL}" in out and "answer about 2 pictures" in out


def test_a_tied_head_is_stored_transposed(package, demo):
    """FusedMatMul has no kernel there, so the head does not read the embedding graph's table."""
    ops = {}
    for folder in (package, demo.fp32):
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        (head,) = (n for n in graph.node if "logits" in n.output)
        shapes = {t.name: tuple(t.dims) for t in graph.initializer}
        ops[folder] = head.op_type, shapes[head.input[1]]
    assert ops[package] == ("MatMul", ops[demo.fp32][1][::-1])
    assert ops[demo.fp32][0] == "FusedMatMul"
