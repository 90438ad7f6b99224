"""`explain`: sites and near-misses of a pass, right before it in the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.__main__ import main
from surgery.engine.facts import Facts
from surgery.watch.explain import explain, lines


def test_sites_and_near_misses_right_before_the_pass(facts: Facts) -> None:
    (found,) = explain("multimodal_rotary", facts)
    assert (found.graph, found.step, len(found.sites)) == ("decoder", "freq_table", 8)
    assert found.misses, "other Concats than rotations"
    depths = [miss.depth for miss in found.misses]
    assert depths == sorted(depths, reverse=True)


def test_a_near_miss_names_condition_values_and_module(facts: Facts) -> None:
    (found,) = explain("multimodal_rotary", facts)
    text = "\n".join(lines(found, "layers.1."))
    assert "model.language_model.layers.1.self_attn: Concat " in text
    assert "needs   past_key_values.1.key from Neg" in text
    assert "found   no node: a graph input or constant" in text
    assert "layers.2" not in text


def test_a_pass_that_runs_twice_is_shown_twice(facts: Facts) -> None:
    found = explain("fold", facts, "embedding")
    assert (found[0].step, len(found)) == ("dims", 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rotry"], "no such name; did you mean rotary?"),
        (["half"], "half: this pass does not run with these options."),
        (
            ["group_query_attention", "--graph", "vision"],
            "group_query_attention: the recipe of the vision graph does not contain this pass.",
        ),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], line: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words, "-i", str(raw)]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_the_command_prints(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "group_query_attention", "-i", str(raw)]) == 0
    assert capsys.readouterr().out.startswith("decoder, after multimodal_rotary: 4 sites\n")
