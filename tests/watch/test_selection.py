"""`--list`, `--only`, `--skip`, `--until`, `--graph`, `--quiet`, `--json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgery.__main__ import main
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import names, passes
from surgery.show import table


def test_every_pass_has_the_name_of_its_module() -> None:
    for name, made in passes().items():
        assert made.__module__.rpartition(".")[2] == name


def test_list_prints_orders_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("vision     dims > fold > ")
    for name, made in passes().items():
        assert f"\n{name}: {made.describe()['summary']}\n" in out
        assert made.describe()["why"] in out


def test_the_page_has_an_entry_a_pass() -> None:
    headings = [line for line in table.page().splitlines() if line.startswith("### ")]
    assert sorted(line.split("`")[1] for line in headings) == sorted(passes() | passes(GENERIC))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--only", "qkv_spilt"], "--only qkv_spilt: no such name; did you mean qkv_split?"),
        (["--skip", "rms_nrom"], "--skip rms_nrom: no such name; did you mean rms_norm?"),
        (
            ["--until", "group_query_attention", "--graph", "vision"],
            "--until group_query_attention: the vision graph has no such step",
        ),
        (["--graph", "decode"], "--graph decode: no such name; did you mean decoder?"),
        (["--only", "fold", "-o", "x"], "-o: a run with --only"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], line: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-i", str(raw), *words]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def run(raw: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    """The passes of a run, from `--json`; nothing else is printed."""
    assert main(["-i", str(raw), "--json", "--quiet", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert result["output"] is None
    found: list[dict[str, object]] = result["passes"]
    return found


def test_until_stops_there(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(raw, capsys, "--until", "multimodal_rotary")
    decoder = names(RECIPES["decoder"])
    assert [p["pass"] for p in found] == decoder[: decoder.index("multimodal_rotary") + 1]
    assert {p["graph"] for p in found} == {"decoder"}, "others have no such pass"


def test_only_runs_these_and_says_what_was_expected(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(raw, capsys, "--only", "fold,group_query_attention", "--graph", "decoder")
    assert [p["pass"] for p in found] == ["fold", "group_query_attention", "fold"]
    assert (found[1]["sites"], found[1]["expected"]) == (0, 4)
    assert main(["-i", str(raw), "--only", "group_query_attention"]) == 0
    assert "(expected 4; passes before it were left out)" in capsys.readouterr().err


def test_skip_leaves_out(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(raw, capsys, "--skip", "silu", "--graph", "decoder")
    assert "silu" not in {p["pass"] for p in found}
    assert len(found) > 10


def test_a_step_of_other_options_is_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", str(raw), "--only", "half"]) == 0
    assert "half: this pass does not run with these options" in capsys.readouterr().err


def test_a_pass_is_known_without_facts() -> None:
    assert names(RECIPES["embedding"])[:2] == ["dims", "fold"]
