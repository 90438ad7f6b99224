"""`--check-steps`: each step runs against the one before, whatever a pass does to the interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from surgery.__main__ import main
from surgery.engine import loading, runner
from surgery.engine.facts import Facts
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.step import Recipe, Step
from surgery.rewrite.contract import Pass, Site
from surgery.watch.check_steps import TOLERANCE, CheckSteps, StepError
from surgery.watch.compare import differences
from surgery.watch.examples import Example
from surgery.watch.shorten import cut_logits, shortened


def figures(
    raw: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The check of each pass of a run; of a pass that runs twice, the later one."""
    chosen = [] if "--graph" in words else ["--graph", "decoder"]
    assert main(["-i", str(raw), "--check-steps", "--json", "--quiet", *chosen, *words]) == 0
    passes = json.loads(capsys.readouterr().out)["passes"]
    return {(p["graph"], p["pass"]): p["check"] for p in passes}


@pytest.mark.parametrize("graph", ["vision", "embedding", "decoder"])
def test_every_pass_keeps_the_numbers(
    graph: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(raw, capsys, "--graph", graph)
    assert all(check["relative"] <= TOLERANCE for check in found.values())
    exact = ("dims", "noop", "fold")
    assert all(found[graph, name]["absolute"] == 0 for name in exact)


@pytest.mark.parametrize("graph", ["vision", "embedding", "decoder"])
def test_every_pass_keeps_the_numbers_for_transformers_js(
    graph: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Embeddings are wider there, and features are put in place by the caller."""
    found = figures(raw, capsys, "--graph", graph, "--for", "transformers.js")
    assert all(check["relative"] <= TOLERANCE for check in found.values())
    exact = {"token_embeds", "plain_lookup", "joined_embeds", "position_limit"}
    assert all(check["absolute"] == 0 for (_, name), check in found.items() if name in exact)


def test_quantized_weights_compare_with_their_unpacked_form(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(raw, capsys, "--symmetric", "--block-size", "64")
    check = found["decoder", "matmul_nbits"]
    assert check["unpacked"] and check["relative"] <= TOLERANCE


def test_a_quantized_tower_compares_with_its_unpacked_form(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sequences in the branches of its attention keep their types."""
    found = figures(raw, capsys, "--graph", "vision", "-p", "int8")
    assert found["vision", "matmul_int8"]["unpacked"]
    assert all(check["relative"] <= TOLERANCE for check in found.values())


def test_a_graph_between_two_dtypes_waits_for_the_next_pass(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(raw, capsys, "-e", "cuda")
    assert "Type Error" in found["decoder", "matmul_nbits"]["skipped"]
    assert found["decoder", "half"]["of"][0] == "matmul_nbits"
    assert 1e-5 < found["decoder", "half"]["relative"] < 1e-2


class Broken(Pass):
    """One attention with another scale.

    before  Attention(q, k, v)
    after   Attention(q, k, v) with a scale of 2
    keeps   nothing
    not     -
    why     to be caught
    """

    name = "broken"

    def sites(self, model: ir.Model) -> list[Site]:
        return []

    def apply(self, model: ir.Model) -> int:
        node = next(n for n in model.graph if n.op_type == "Attention")
        node.attributes["scale"] = ir.AttrFloat32("scale", 2.0)
        return 1


BROKEN: Recipe = (*RECIPES["decoder"][:2], Step(Broken))


def test_the_first_wrong_pass_stops_the_run(facts: Facts, tmp_path: Path) -> None:
    model = loading.load(facts.raw / "decoder.onnx", facts.weights)
    watch = CheckSteps(tmp_path / "repro")
    with pytest.raises(StepError, match=r"broken: \S+ of the decoder graph differs by"):
        list(runner.watched("decoder", model, BROKEN, facts, watchers=[watch]))
    watch.end()
    folder = tmp_path / "repro" / "decoder-broken"
    arrays = np.load(folder / "inputs.npz")
    feeds = {k.removeprefix("0/"): arrays[k] for k in arrays.files if k.startswith("0/")}
    outputs = []
    for name in ("before.onnx", "after.onnx"):
        session = ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        wanted = {i.name: feeds[i.name] for i in session.get_inputs()}
        outputs.append(session.run(["logits"], wanted)[0])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2, "the repro shows it"


def test_a_large_model_is_cut(facts: Facts, tmp_path: Path) -> None:
    model = loading.load(facts.raw / "decoder.onnx", facts.weights)
    watch = CheckSteps(tmp_path, limit=0)
    steps = list(runner.watched("decoder", model, RECIPES["decoder"], facts, watchers=[watch]))
    watch.end()
    assert "(layers 0, 1, 3 of 4)" in steps[0][1]
    assert all("checked: " in words for _, words in steps)
    attentions = [n for n in watch.model.graph if n.op_type == "GroupQueryAttention"]
    whole = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
    assert (len(attentions), len(whole)) == (3, 4), "the whole graph ships"


@pytest.mark.parametrize(("graph", "dropped"), [("vision", "layers 0, 1, 4 of 5"), ("decoder", "")])
def test_cutting_leaves_the_model_alone(graph: str, dropped: str, facts: Facts) -> None:
    model = loading.load(facts.raw / f"{graph}.onnx", facts.weights)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    copy, words = shortened(model, limit=0)
    assert dropped in words
    assert len(copy.graph) < len(model.graph)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert shortened(model)[1] == "", "small enough"


def test_logits_are_cut(facts: Facts) -> None:
    model = loading.load(facts.raw / "decoder.onnx", facts.weights)
    assert cut_logits(model, 100)
    logits = next(v for v in model.graph.outputs if v.name == "logits")
    assert logits.shape is not None and logits.shape[-1] == 100


def test_the_package_is_the_same_with_and_without(raw: Path, tmp_path: Path) -> None:
    for words in ([], ["-e", "cuda"]):
        plain, watched = tmp_path / f"plain{len(words)}", tmp_path / f"watched{len(words)}"
        assert main(["-i", str(raw), "-o", str(plain), "--quiet", *words]) == 0
        assert main(["-i", str(raw), "-o", str(watched), "--quiet", "--check-steps", *words]) == 0
        for path in plain.iterdir():
            assert path.read_bytes() == (watched / path.name).read_bytes(), path.name


def test_missing_and_misshapen_outputs_are_infinitely_off() -> None:
    example = Example("one", {})
    want, got = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(3)}
    assert [d.relative for d in differences(example, want, got)] == [np.inf, np.inf]
    assert differences(example, {"a": np.ones(2)}, {"a": np.array([1, np.nan])})[0].absolute > 1
