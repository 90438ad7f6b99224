"""`python -m surgery eval`: accuracy by kind, agreement with PyTorch, divergence."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hf_video import noise
from PIL import Image

from surgery.__main__ import main
from surgery.answer.evaluation import Verdict, divergence, right, summarize
from surgery.answer.evaluation import evaluate as evaluate_questions
from surgery.answer.questions import Question, read_questions
from surgery.answer.runtime import Runtime
from surgery.base import manifest
from surgery.jobs.prepack import prepack


@pytest.fixture
def questions(demo, tmp_path):
    """One question of each form; the expected answer of the first is what PyTorch says."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (80, 112, 3), np.uint8)  # odd multiples of 16
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    picture = Image.open(tmp_path / "images" / "a.png").convert("RGB")
    inputs = demo.reference.inputs(demo.reference.chat("what color is it?", 1), [picture])
    said = demo.reference.text(demo.reference.generate(inputs, 8).tokens)
    lines = [
        {"image": "images/a.png", "question": "what color is it?", "answer": said, "kind": "color"},
        {"image": ["images/a.png", "images/b.png"], "question": "same?", "answer": "-"},
        {"question": "Hello, who are you?", "answer": "-"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluate(package, questions, *words):
    out = questions.with_name("out.json")
    words = ("--questions", questions, "--max-tokens", 8, "--json", out, *words)
    assert main(["eval", *map(str, (package, *words))]) == 0
    return json.loads(out.read_text())


def test_an_fp32_package_agrees_with_pytorch(demo, questions, capsys):
    found = evaluate(demo.fp32, questions, "--against", "demo")
    table = capsys.readouterr().out
    assert list(found["kinds"]) == ["color", "question", "all"]
    assert found["kinds"]["color"]["package"] == found["kinds"]["color"]["pytorch"] == 1
    assert found["kinds"]["all"]["count"] == 3
    assert found["kinds"]["all"]["agreement"] == 1
    assert 0 <= found["kinds"]["all"]["kl"] < 1e-9
    assert len(found["answers"]) == 3
    assert "agreement" in table and "100.0%" in table


def test_int4_diverges_measurably(demo, questions):
    found = evaluate(demo.int4, questions, "--against", "demo")["kinds"]["all"]
    assert 1e-9 < found["kl"] < 1


def test_a_package_alone(demo, questions):
    found = evaluate(demo.fp32, questions, "--limit", "2")
    assert found["kinds"]["all"].keys() == {"count", "package"}
    assert found["kinds"]["all"]["count"] == 2


@pytest.fixture
def own_copy(demo, tmp_path):
    """A package that a test may write into."""
    return Path(shutil.copytree(demo.int4, tmp_path / "package"))


def answer_in(card):
    """The lines of the card's answer."""
    told = card.partition("The package's answer:\n\n")[2].partition("\n\n<!-- end -->")[0]
    return [line.removeprefix("    ") for line in told.splitlines()]


def test_a_card_has_figures_and_an_example(own_copy, questions, capsys):
    """The answer is the one that chat gives about the picture in the package; digests hold."""
    before = (own_copy / "README.md").read_text()
    found = evaluate(own_copy, questions, "--against", "demo", "--card")
    card = (own_copy / "README.md").read_text()
    assert card.startswith(before.rstrip())
    row = found["kinds"]["all"]
    cells = [f"{row[name]:.1%}" for name in ("package", "pytorch", "agreement")]
    assert f"| all | 3 | {' | '.join(cells)} | {row['kl']:.1e} |" in card
    assert "![The picture of the example](example.png)" in card
    assert not list(manifest.changes(own_copy))
    assert sorted(own_copy.parent.glob(".*")) == [] and sorted(own_copy.glob(".*")) == []
    capsys.readouterr()
    words = ["chat", own_copy, "--image", own_copy / "example.png", "--temperature", 0]
    words += ["--max-tokens", 8, "what color is it?"]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.splitlines() == answer_in(card)


def test_a_card_is_written_anew(own_copy, questions):
    """Another measurement replaces the first, and takes its picture away if it has none."""
    evaluate(own_copy, questions, "--card")
    first = (own_copy / "README.md").read_text()
    evaluate(own_copy, questions, "--card")
    assert (own_copy / "README.md").read_text() == first
    assert "PyTorch" not in first.partition("## Measured")[2]
    questions.write_text(json.dumps({"question": "a|b `c`\n<b>", "answer": "", "kind": "k|<i>"}))
    evaluate(own_copy, questions, "--card")
    card = (own_copy / "README.md").read_text()
    assert card.count("## Measured") == 1 and "| k&#124;&lt;i&gt; | 1 |" in card
    assert "example.png" not in card and not (own_copy / "example.png").exists()
    assert not list(manifest.changes(own_copy))


def test_a_card_of_a_prepacked_package_says_nothing_of_the_other(own_copy, questions):
    before = (own_copy / "README.md").read_text()
    evaluate(own_copy, questions, "--card")
    packed = prepack(own_copy)
    assert (packed / "README.md").read_text() == before
    assert not (packed / "example.png").exists()


@pytest.mark.parametrize("missing", ["surgery.json", "README.md"])
def test_a_card_needs_a_whole_package(own_copy, questions, capsys, missing):
    """It is refused before the first question."""
    (own_copy / missing).unlink()
    assert main(["eval", str(own_copy), "--questions", str(questions), "--card"]) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1 and f"{missing}" in err and "kind" not in out


@pytest.fixture
def videos(questions):
    """The same with a line about a picture, a folder of frames and an animation."""
    frames = questions.parent / "frames"
    frames.mkdir()
    pictures = [Image.fromarray(frame) for frame in noise(9, 64, 48).read(range(9))]
    for number, picture in enumerate(pictures):
        picture.save(frames / f"{number}.png")
    moving = questions.parent / "moving.gif"
    pictures[0].save(moving, save_all=True, append_images=pictures[1:], duration=100)
    line = {
        "image": "images/a.png",
        "video": ["frames", "moving.gif"],
        "question": "what color is it?",
        "answer": "-",
        "kind": "video",
    }
    with questions.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return questions


def test_a_line_may_name_videos(demo, videos, capsys):
    """The answer is the one that chat gives with the same options."""
    words = ("--fps", 5, "--max-frames", 4)
    found = evaluate(demo.fp32, videos, *words)
    assert found["kinds"]["video"]["count"] == 1
    capsys.readouterr()
    folder = videos.parent
    shown = ["--image", folder / "images/a.png", "--video", folder / "frames"]
    shown += ["--video", folder / "moving.gif", "--temperature", 0, "--max-tokens", 8]
    chat = ["chat", demo.fp32, *shown, *words, "what color is it?"]
    assert main([str(word) for word in chat]) == 0
    assert capsys.readouterr().out == found["answers"][-1]["package"] + "\n"


def test_frames_are_taken_as_the_options_say(demo, videos):
    clips = []

    class Watched(Runtime):
        def clip(self, *words):
            clips.append(super().clip(*words))
            return clips[-1]

    asked = read_questions(videos)[-1:]
    for sampling in ((5.0, 4), (5.0, 8)):
        evaluate_questions(Watched(demo.fp32), asked, max_tokens=1, sampling=sampling)
    assert [len(clip.frames) for clip in clips] == [4, 4, 8, 4]
    assert clips[2].seconds[0] == 0.1, "the folder's frames are a fifth of a second apart"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "demo"), "asks about videos"),
        (("--fps", "0"), "fps is 0.0"),
        (("--max-frames", "1"), "max-frames is 1"),
    ],
)
def test_what_cannot_be_asked_about_videos_is_refused(demo, videos, capsys, words, message):
    out = videos.with_name("out.json")
    named = ["--questions", str(videos), "--json", str(out), *words]
    assert main(["eval", str(demo.fp32), *named]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not out.exists()


def test_a_package_of_another_family_refuses_videos(cases, videos, capsys):
    assert main(["eval", str(cases("qwen2_5").fp32), "--questions", str(videos)]) == 2
    assert "only Qwen3-VL packages take videos" in capsys.readouterr().err


def test_divergence_is_kl():
    p, q = np.array([[0.0, math.log(3)]], np.float32), np.array([[0.0, 0.0]], np.float32)
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(p, q) == pytest.approx([wanted], abs=1e-6)
    assert divergence(p, p) == pytest.approx([0])


@pytest.mark.parametrize("said", ["red", " Red.", "RED\n"])
def test_case_space_and_full_stop_do_not_count(said):
    assert right(said, "red")
    assert not right(said, "blue")


@pytest.mark.parametrize(
    ("said", "correct"),
    [
        ("10 10 30 30", True),
        ("[10, 10, 30, 29]", True),
        ("12 10 30 30", True),
        ("30 30 50 50", False),
        ("10 10 30", False),
        ("30 30 10 10", False),
        ("a box", False),
    ],
)
def test_a_box_is_right_when_it_overlaps_by_half(said, correct):
    assert right(said, "10 10 30 30") is correct


def test_a_summary_weighs_tokens_and_counts_kinds():
    def verdict(kind, said, kl):
        return Verdict(Question((), "?", "red", kind), said, "red", said == "red", kl)

    found = summarize([verdict("a", "red", (0.1, 0.2, 0.3)), verdict("b", "blue", (1.0,))])
    assert found["a"]["package"] == 1 and found["b"]["package"] == 0
    assert found["all"]["kl"] == pytest.approx(0.4)
    assert found["all"]["agreement"] == 0.5


def test_a_limit_is_spread_over_the_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        "".join(json.dumps({"question": str(i), "answer": ""}) + "\n" for i in range(9))
    )
    assert [q.text for q in read_questions(path, 3)] == ["0", "3", "6"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("{", "line 1: not a question"),
        ('{"question": "?"}', "line 1: not a question: 'answer' is missing"),
        ('{"question": "?", "answer": 3}', "must be text"),
        ('{"question": "?", "answer": "!", "image": "missing.png"}', "no such picture"),
        ('{"question": "?", "answer": "!", "video": "missing"}', "no such video"),
        ('{"question": "?", "answer": "!", "video": 3}', "line 1: not a question"),
        ('{"question": "?", "answer": "!", "video": [3]}', "video must be text"),
        ('{"question": "<|image_pad|>?", "answer": "!"}', "takes for a picture"),
    ],
)
def test_errors_are_one_line(demo, tmp_path, capsys, text, message):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    assert main(["eval", str(demo.fp32), "--questions", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
