"""Passes on a graph that nobody here exported, and on trained models. Runs with `--foreign`."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from elsewhere import ELSEWHERE, Absent, Chat
from export import exported
from table import TABLE, kept, trained

from surgery.engine.options import Options
from surgery.jobs.apply import apply

CHAT = next(name for name, graph in ELSEWHERE.items() if isinstance(graph, Chat))


@pytest.fixture
def found(result):
    """What the recipe does to a graph, skipped where its package is absent."""

    def get(name):
        try:
            return result(name, ELSEWHERE)
        except Absent as e:
            pytest.skip(str(e))

    return get


@pytest.mark.parametrize("name", ELSEWHERE)
def test_outputs_unchanged(found, name):
    """What the graph, or PyTorch, computed before."""
    assert found(name).error < 1e-5


@pytest.mark.parametrize("name", ELSEWHERE)
def test_sites(found, name):
    """Every pass acts at every place that the architecture has."""
    fired = {k: n for k, n in found(name).fired.items() if n}
    assert fired == found(name).expected
    assert set(found(name).reasons) == set(ELSEWHERE[name].refused)


@pytest.fixture(scope="module")
def packages(request, tmp_path_factory):
    """The language model as `apply` writes it, by precision; and PyTorch's answers."""
    cache = request.config.cache.mkdir("families")
    try:
        export = exported(CHAT, ELSEWHERE[CHAT], cache)
    except Absent as e:
        pytest.skip(str(e))
    stored = np.load(export.path.parent / "answers.npz")
    answers = [
        (stored[f"{i}|prompt"], stored[f"{i}|answer"]) for i in range(len(stored.files) // 2)
    ]
    folders = {}
    for precision in ("fp32", "int4"):
        folders[precision] = tmp_path_factory.mktemp(precision) / "out"
        options = Options(text_precision=precision, max_length=256)
        apply(export.path, folders[precision], "decoder", options, tell=lambda record, words: None)
    return folders, answers


def agreement(path, answers):
    """How often the likeliest token is PyTorch's, and all tokens, each after PyTorch's own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path / "model.onnx", options, ["CPUExecutionProvider"])
    graph = ELSEWHERE[CHAT]
    equal = total = 0
    for prompt, answer in answers:
        past = [array.numpy() for array in graph.nothing(1)]
        tokens = prompt[None]
        for wanted in answer:
            before = past[0].shape[2]
            end = before + tokens.shape[1]
            feeds = {
                "input_ids": tokens,
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(before, end)[None],
                **dict(zip(graph.names[0][3:], past, strict=True)),
            }
            logits, *past = session.run(None, feeds)
            equal += int(logits[0, -1].argmax() == wanted)
            total += 1
            tokens = np.array([[wanted]])
    return equal, total


@pytest.fixture(scope="module")
def tokens(packages):
    """Agreement by precision."""
    folders, answers = packages
    return {precision: agreement(path, answers) for precision, path in folders.items()}


def test_answers(tokens):
    """The trained model answers as in PyTorch: in float32 token for token, in 4 bits mostly."""
    equal, total = tokens["fp32"]
    assert equal == total
    equal, total = tokens["int4"]
    assert equal > 0.6 * total


def test_table(found, tokens, request):
    """The section of the page of models is what is measured."""
    results = {name: found(name) for name in ELSEWHERE}
    parts = [f"{equal} of {total} {word}" for word, (equal, total) in tokens.items()]
    notes = {CHAT: f"likeliest token that of PyTorch, after PyTorch's own: {', '.join(parts)}"}
    text = trained(results, ELSEWHERE, notes) + "\n"
    if request.config.getoption("--update-table", False):
        table = TABLE.read_text(encoding="utf-8")
        before = table.removesuffix(kept()).rstrip("\n")
        TABLE.write_text(f"{before}\n\n{text}", encoding="utf-8")
    assert kept() == text, "pytest tests/families --foreign --update-table"
