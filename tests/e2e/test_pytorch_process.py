"""PyTorch in another process: the same answers as in this one, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.__main__ import main
from surgery.answer.pytorch import PyTorch
from surgery.base.errors import CheckpointError, UserError

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "what color is it?"
HEAD, NORM = "lm_head.weight", "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def pytorch(demo):
    with PyTorch.running(demo.checkpoint) as running:
        yield running


def pictures(count):
    rng = np.random.default_rng(count)
    sizes = [(96, 64), (112, 80)][:count]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def compare(pytorch, reference, count=1, steps=6, stop=False):
    """One question to both."""
    asked = pytorch.prompt(QUESTION, pictures(count))
    inputs = reference.inputs(reference.chat(QUESTION, count), pictures(count))
    assert asked.ids.tolist() == inputs["input_ids"][0].tolist()
    found, wanted = pytorch.generate(asked, steps, stop), reference.generate(inputs, steps, stop)
    assert found.tokens == wanted.tokens
    assert found.text == reference.text(wanted.tokens)
    assert found.logits.dtype == np.float32 and found.logits.shape == wanted.logits.shape
    assert abs(found.logits - wanted.logits).max() <= 1e-6 * abs(wanted.logits).max()
    return found


def test_requests_in_a_row_are_answered_as_in_this_process(pytorch, demo):
    for count in (0, 2, 1):
        assert len(compare(pytorch, demo.reference, count).tokens) == 6
        assert not any(pytorch.folder.iterdir()), "a file of the request was left"


def test_an_answer_ends_at_the_end_token_where_asked(pytorch, demo):
    said = compare(pytorch, demo.reference, steps=64, stop=True)
    assert len(said.tokens) < 64


def test_an_older_question_can_be_asked_again(pytorch):
    first = pytorch.prompt(QUESTION, pictures(2))
    once = pytorch.generate(first, 4)
    pytorch.prompt("something else", pictures(1))
    again = pytorch.generate(first, 4)
    assert again.tokens == once.tokens and np.array_equal(again.logits, once.logits)


def test_replaced_weights_are_computed_with(demo, cases):
    from export_min import open_checkpoint
    from export_min.reference import Reference

    source = cases("untied").checkpoint
    own = Reference(open_checkpoint(source))
    weights = {
        name: 1.5 * own.model.get_parameter(name).detach().numpy().copy() for name in (HEAD, NORM)
    }
    with PyTorch.running(source) as other:
        before = compare(other, own)
        other.replace(weights.items())
        own.replace((name, weight.copy()) for name, weight in weights.items())
        after = compare(other, own)
        assert not any(other.folder.iterdir())
    assert abs(after.logits[0] - before.logits[0]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [("model.nowhere.weight", (3, 4), "has none"), (NORM, (3,), r"has \[")],
)
def test_a_weight_that_the_checkpoint_has_not(pytorch, demo, name, shape, found):
    with pytest.raises(CheckpointError, match=f"{name} of shape .* {found}"):
        pytorch.replace([(name, np.zeros(shape, np.float32))])
    compare(pytorch, demo.reference)


@pytest.mark.parametrize(
    ("what", "fields", "message"),
    [
        ("prompt", {"question": "is <|image_pad|> here?", "pictures": []}, "takes for a picture"),
        ("prompt", {"question": "?", "pictures": ["missing.png"]}, "missing.png: no such picture"),
        ("prompt", {"question": 3, "pictures": []}, "prompt: question is 3, needs str"),
        ("generate", {"question": "?", "pictures": []}, "generate: steps is None, needs int"),
        ("replace", {"name": NORM, "weight": "missing.npy"}, "missing.npy: no array can be read"),
        ("dance", {}, "ask is 'dance', needs one of prompt, generate, weight, replace"),
    ],
)
def test_an_error_in_a_request_is_a_reply(pytorch, demo, what, fields, message):
    with pytest.raises(UserError, match=message):
        pytorch.ask(what, **fields)
    compare(pytorch, demo.reference)


def test_logits_that_cannot_be_written(pytorch, tmp_path):
    fields = {"question": "?", "pictures": [], "steps": 1, "stop": True}
    with pytest.raises(UserError, match=r"nowhere.*cannot be written: No such file"):
        pytorch.ask("generate", **fields, logits=str(tmp_path / "nowhere" / "logits.npy"))


def test_a_crash_tells_the_end_of_standard_error(demo):
    with PyTorch.running("demo") as other:
        asked = other.prompt(QUESTION)
        with pytest.raises(UserError, match=r"ended with exit code 2: .*max_new_tokens"):
            other.generate(asked, -1)
        with pytest.raises(UserError, match="ended with exit code 2"):
            other.prompt(QUESTION)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_was_killed():
    with PyTorch.running("demo") as other:
        os.kill(other.child.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"ended by SIGKILL, .*memory"):
            other.prompt(QUESTION)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_what_libraries_print_is_no_reply():
    """Python's own output and that of a program it starts."""
    script = (
        "import os; from export_min.answer import own_stdout, send; replies = own_stdout();"
        "print('from Python', flush=True); os.system('echo from elsewhere');"
        "send(replies, {'ids': [1]})"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"ids": [1]}
    assert "from Python" in done.stderr and "from elsewhere" in done.stderr


PARENT = """
import sys, time
from surgery.answer.pytorch import PyTorch
with PyTorch.running("demo") as pytorch:
    asked = pytorch.prompt("what color is it?")
    print(pytorch.child.pid, pytorch.folder, flush=True)
    if sys.argv[1] == "waiting":
        time.sleep(600)
    pytorch.generate(asked, 100_000, stop=False)
"""


def runs(pid):
    """Whether a process computes still; one that ended and that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("state", ["waiting", "answering"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_no_process_outlives_the_one_that_asks(state, end):
    command = [sys.executable, "-c", PARENT, state]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as parent:
        words = parent.stdout.readline().split()
        pid, folder = int(words[0]), Path(words[1])
        time.sleep(0.5)
        assert runs(pid) and folder.is_dir()
        parent.send_signal(end)
        parent.wait(30)
    deadline = time.monotonic() + 30
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)
    if end == signal.SIGINT:
        assert not folder.exists()


@pytest.mark.parametrize("command", [("verify", "--checkpoint"), ("eval", "--against")])
def test_a_checkpoint_that_cannot_be_used_is_one_line(demo, tmp_path, capfd, command):
    """A missing folder, and one that holds another architecture."""
    (name, option), package = command, demo.fp32
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    for source, message in (
        ("nowhere/at/all", "nowhere/at/all: there is no such directory, and it is not a hub id"),
        (tmp_path, "is missing"),
    ):
        capfd.readouterr()
        assert main([name, str(package), option, str(source)]) == 2
        out, err = capfd.readouterr()
        (line,) = err.strip().splitlines()
        assert line.startswith("error: ") and message in line and not out


def test_torch_stays_out_of_the_process_that_measures(demo, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "what is it?", "answer": "-"}\n')
    script = (
        "import sys; from surgery.__main__ import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'transformers', 'export_min'} & set(sys.modules)))"
    )
    for words in (
        ("verify", demo.fp32, "--checkpoint", "demo"),
        ("eval", demo.fp32, "--against", "demo", "--questions", questions, "--max-tokens", "4"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[-1] == "0 []", done.stderr
