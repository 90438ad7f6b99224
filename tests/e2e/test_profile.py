"""`python -m surgery profile`: the nodes of each phase, and their own time."""

from __future__ import annotations

import json

import pytest

from surgery.__main__ import main
from surgery.answer.profiling import Share, add, alone
from surgery.commands.profile import ROWS
from surgery.verify.opened import Opened

TOKENS = 5


def node(op, start, length):
    return {"cat": "Node", "name": op, "ts": start, "dur": length, "args": {"op_name": op}}


def test_time_in_a_branch_is_that_of_its_nodes():
    """An If around two nodes, one of them around a third; one node behind it."""
    nodes = [node("If", 0, 100), node("Loop", 10, 50), node("Add", 20, 30), node("Mul", 70, 20)]
    nodes.append(node("Sub", 100, 7))
    own = {event["name"]: spent for event, spent in alone(nodes)}
    assert own == {"If": 30, "Loop": 20, "Add": 30, "Mul": 20, "Sub": 7}


def test_the_first_run_is_the_prompt():
    events = [{"cat": "Session", "name": "model_run", "ts": t, "dur": 50} for t in (0, 100, 200)]
    events += [node("Add", t, 10) for t in (5, 105, 205)]
    found = {}
    add(found, "decoder", events)
    assert found == {"Add": {"prefill": Share(1e-5, 1), "decode": Share(2e-5, 2)}}
    add(found, "vision", events)
    assert found["Add"]["vision"].seconds == pytest.approx(3e-5)
    assert found["Add"]["vision"].calls == 3


@pytest.mark.parametrize("kind", ["fp32", "int4"])
def test_every_product_of_a_package_is_counted(demo, tmp_path, capsys, kind):
    """Once for the prompt, and once for each further token."""
    package, out = getattr(demo, kind), tmp_path / "profile.json"
    words = ["--tokens", str(TOKENS), "--json", str(out)]
    assert main(["profile", str(package), *words]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["answer_tokens"] == TOKENS, "an end token does not end it"
    graph = Opened(package).graphs["decoder"].graph
    for op in ("GroupQueryAttention", "MatMulNBits" if kind == "int4" else "FusedMatMul"):
        count = sum(n.op_type == op for n in graph)
        shares = found["ops"][op]
        assert count and shares["prefill"]["calls"] == count
        assert shares["decode"]["calls"] == (TOKENS - 1) * count
        assert "vision" not in shares
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + ROWS]] == [*found["ops"]][:ROWS]
    assert lines[1 + ROWS].startswith(f"{len(found['ops']) - ROWS} others")
    attention = found["ops"]["MultiHeadAttention"]
    assert attention.keys() == {"vision"} and attention["vision"]["calls"] > 0
    for phase, seconds in found["seconds"].items():
        own = [shares[phase]["seconds"] for shares in found["ops"].values() if phase in shares]
        assert sum(own) == pytest.approx(seconds) and seconds > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{missing}",), "no such directory"),
        (("{package}", "--tokens", "0"), "tokens is 0"),
        (("{package}", "--image", "{missing}"), "no such picture"),
        (("{package}", "--json", "{missing}/a.json", "--tokens", "1"), "cannot be written"),
    ],
)
def test_errors_are_one_line(demo, tmp_path, capsys, words, message):
    places = {"package": demo.fp32, "missing": tmp_path / "missing"}
    assert main(["profile", *(word.format(**places) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
