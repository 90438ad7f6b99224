"""`python -m surgery chat`: pictures of any format, sampling, conversations, plain errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Runtime, Sampling
from surgery.base.pictures import open_picture

QUESTION = "what color is the shape?"
UPRIGHT = 6
"""EXIF orientation of a picture that has to be turned by a quarter."""


def chat(*words, **options):
    command = [sys.executable, "-m", "surgery", "chat", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def picture():
    """Few colours, so that a GIF holds them all."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (32, 3), np.uint8)
    return Image.fromarray(colors[rng.integers(0, 32, (96, 160))])


@pytest.fixture(scope="module")
def answer(demo, picture):
    """What PyTorch says about it."""
    inputs = demo.reference.inputs(demo.reference.chat(QUESTION, 1), [picture])
    return demo.reference.text(demo.reference.generate(inputs, 8).tokens)


def save(picture, folder, kind):
    path = folder / f"picture.{kind}"
    if kind == "webp":
        picture.save(path, lossless=True)
    elif kind == "rgba.png":
        picture.convert("RGBA").save(path)
    else:
        picture.save(path)
    return path


@pytest.mark.parametrize("kind", ["png", "rgba.png", "webp", "gif", "bmp", "tiff"])
def test_one_answer_about_a_picture(demo, picture, answer, tmp_path, kind):
    path = save(picture, tmp_path, kind)
    options = ("--image", path, "--temperature", 0, "--max-tokens", 8)
    done = chat(demo.fp32, *options, QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n") == answer.rstrip("\n")


def test_exif_orientation_is_applied(demo, picture, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    picture.save(path, exif=exif, quality=95, subsampling=0)
    assert open_picture(path).size == (96, 160)
    upright = open_picture(path)
    inputs = demo.reference.inputs(demo.reference.chat(QUESTION, 1), [upright])
    wanted = demo.reference.text(demo.reference.generate(inputs, 8).tokens)
    done = chat(demo.fp32, "--image", path, "--temperature", 0, "--max-tokens", 8, QUESTION)
    assert done.stdout.rstrip("\n") == wanted.rstrip("\n")


def test_sixteen_bit_grey(tmp_path):
    grey = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    found = np.asarray(open_picture(tmp_path / "grey.png"))
    assert np.array_equal(found[..., 0], grey >> 8)


def test_a_conversation_reads_lines(demo, picture, tmp_path):
    path = save(picture, tmp_path, "webp")
    lines = f"Hello, who are you?\n/image {path}\n{QUESTION}\n/new\n{QUESTION}\n/quit\nnot read\n"
    done = chat(demo.fp32, "--temperature", 0, "--max-tokens", 6, input=lines)
    assert (done.returncode, done.stderr) == (0, "")
    runtime = Runtime(demo.fp32)

    def say(messages, pictures):
        prompt = runtime.prompt(runtime.chat(messages), pictures)
        return runtime.text(list(runtime.generate(prompt, 6, GREEDY)))

    hello = {"role": "user", "content": "Hello, who are you?"}
    first = say([hello], [])
    about = {"role": "user", "content": f"<|vision_start|><|image_pad|><|vision_end|>{QUESTION}"}
    second = say([hello, {"role": "assistant", "content": first}, about], [picture])
    third = say([{"role": "user", "content": QUESTION}], [])
    assert done.stdout == f"{first}\n{second}\n{third}\n"


def test_a_later_picture_is_seen(demo, picture):
    """The runtime drops a picture that joins a running generator; a conversation does not."""
    conversation = Conversation(Runtime(demo.fp32), Sampling(temperature=0), 4)
    first = "".join(conversation.say("Hello, who are you?", []))
    second = "".join(conversation.say(QUESTION, [picture]))
    reference = demo.reference
    history = [
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": f"<|vision_start|><|image_pad|><|vision_end|>{QUESTION}"},
    ]
    prompt = reference.tokenizer.apply_chat_template(
        history, tokenize=False, add_generation_prompt=True
    )
    answer = reference.generate(reference.inputs(prompt, [picture]), 4)
    assert second == reference.text(answer.tokens)


def test_a_seed_repeats_a_sample(demo):
    options = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.95, "--max-tokens", 12)
    first, second, other = (
        chat(demo.fp32, *options, "--seed", seed, QUESTION).stdout for seed in (1, 1, 2)
    )
    assert first == second != other


def test_greedy_is_a_temperature_of_zero():
    assert Sampling(temperature=0, top_k=5).options() == {"do_sample": False}
    assert Sampling().options() == {}
    assert Sampling(top_p=0.5).options() == {"do_sample": True, "top_p": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{missing}", "hello"), "no such directory"),
        (("{folder}", "hello"), "no package here"),
        (("{package}", "--image", "{text}", "hello"), "not a picture"),
        (("{package}", "--image", "{missing}", "hello"), "no such picture"),
        (("{package}", "--image", "{cut}", "hello"), "cannot be read as a picture"),
        (
            ("{package}", "--image", "{thin}", "hello"),
            "one side may be at most 200 times as long as the other",
        ),
        (("{package}", "hello " * 5000), "the prompt has"),
        (("{package}", "what is <|vision_start|>?"), "takes for a picture"),
        (("{package}", "what is <|image_pad|>?"), "takes for a picture"),
        (("{package}", "--temperature", "-1", "hello"), "temperature is -1.0"),
        (("{package}", "--top-p", "0", "hello"), "top-p is 0.0"),
        (("{package}", "--max-tokens", "0", "hello"), "max-tokens is 0"),
    ],
)
def test_errors_are_one_line(demo, tmp_path, capsys, words, message):
    from surgery.__main__ import main

    places = {"package": demo.fp32, "folder": tmp_path, "missing": tmp_path / "missing"}
    for name in ("text", "cut", "thin"):
        places[name] = tmp_path / f"{name}.png"
    places["text"].write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(places["cut"])
    places["cut"].write_bytes(places["cut"].read_bytes()[:3000])
    Image.new("RGB", (4, 1000)).save(places["thin"])
    assert main(["chat", *(word.format(**places) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
