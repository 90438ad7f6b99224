"""Videos: the fp32 package in onnxruntime-genai says what PyTorch says, through `chat` as well."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from case import Case
from hf_video import inputs, noise, processor, torchvision  # noqa: F401
from PIL import Image

from export_min import export
from surgery.__main__ import main
from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Runtime, Sampling
from surgery.base.demo import DEMO
from surgery.base.errors import PackageError, UserError
from surgery.base.frames import Frames
from surgery.base.prompts import IMAGE, VIDEO, turn
from surgery.engine.options import Options

QUESTION = "what color is the shape?"
TOLERANCE = 1e-4
NAMES = ("demo", "untied", "sharded", "half", "experts", "some experts")


def picture(width, height):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


SHOWN = {
    "two frames": [noise(2, 128, 96)],
    "odd": [noise(5, 96, 64)],
    "odd, seven": [noise(7, 160, 96, rate=3.0)],
    "sampled": [noise(41, 64, 96, rate=9.7)],
    "enlarged": [noise(4, 20, 33)],
    "reduced": [noise(6, 700, 500)],
    "video, picture": [noise(4, 96, 96), picture(128, 64)],
    "picture, video": [picture(128, 64), noise(4, 96, 96)],
    "mixed": [noise(3, 64, 128), picture(96, 96), picture(64, 160), noise(6, 96, 96, seed=1)],
    "equal grids": [picture(96, 96), noise(4, 96, 96), noise(4, 96, 96, seed=1)],
}


def asked(case, shown, question=QUESTION):
    """What PyTorch takes for a question, from transformers' own processor."""
    reference = case.reference
    marks = "".join(VIDEO if isinstance(s, Frames) else IMAGE for s in shown)
    prompt = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": turn(question, marks)}],
        tokenize=False,
        add_generation_prompt=True,
    )
    stills = [s for s in shown if not isinstance(s, Frames)]
    return inputs(
        processor(case.checkpoint), prompt, stills, [s for s in shown if isinstance(s, Frames)]
    )


def as_videos(ids, config):
    """Ids of a prompt with the token of a video for that of a picture."""
    return np.where(ids == config.image_token_id, config.video_token_id, ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SHOWN)
def test_tokens_and_logits_are_pytorchs(cases, name, kind):
    case = cases(name)
    steps = 16 if "experts" in name else 64  # which PyTorch asks one by one
    reference, runtime, shown = case.reference, case.endless, SHOWN[kind]
    wanted = asked(case, shown)
    ready = [runtime.clip(s) if isinstance(s, Frames) else s for s in shown]
    prompt = runtime.prompt(runtime.ask(QUESTION, ready), ready)
    ids = as_videos(wanted["input_ids"][0].numpy(), reference.config)
    assert prompt.ids.tolist() == ids.tolist()
    answer = reference.generate(wanted, steps, stop=False)
    assert list(runtime.generate(prompt, steps, GREEDY)) == answer.tokens
    difference = abs(runtime.follow(prompt, answer.tokens) - answer.logits).max()
    print(f"max|dlogit| {difference:.1e} of {abs(answer.logits).max():.1f}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("kind", ["mixed", "equal grids", "seven pairs"])
@pytest.mark.parametrize("most", [1, 60, 100])
def test_runs_of_the_vision_graph_change_nothing(demo, kind, most, monkeypatch):
    """Frames in runs of one pair, two or more; see `surgery.base.videos.runs`."""
    runtime, shown = demo.endless, {**SHOWN, "seven pairs": [noise(14, 96, 64)]}[kind]
    ready = [runtime.clip(s) if isinstance(s, Frames) else s for s in shown]
    whole = runtime.prompt(runtime.ask(QUESTION, ready), ready)
    monkeypatch.setattr("surgery.answer.runtime.MOST_AT_ONCE", most)
    prompt = runtime.prompt(runtime.ask(QUESTION, ready), ready)
    grids = [p.tensors["image_grid_thw"].as_numpy().tolist() for p in (whole, prompt)]
    assert len(grids[0]) < len(grids[1])
    wanted = demo.reference.generate(asked(demo, shown), 16, stop=False)
    assert list(runtime.generate(prompt, 16, GREEDY)) == wanted.tokens
    assert abs(runtime.follow(prompt, wanted.tokens) - wanted.logits).max() < TOLERANCE


def test_order_of_frames_and_their_times_matter_to_these_weights(demo):
    """Else the comparison above would prove less than it seems to."""
    runtime = demo.endless
    right = runtime.clip(noise(4, 96, 96))
    other = [
        dataclasses.replace(right, frames=right.frames[[1, 0, 2, 3]]),
        dataclasses.replace(right, frames=right.frames[[2, 3, 0, 1]]),
        dataclasses.replace(right, seconds=(9.0, 9.5)),
    ]
    rows = []
    for clip in (right, *other):
        prompt = runtime.prompt(runtime.ask(QUESTION, [clip]), [clip])
        rows.append(runtime.follow(prompt, [0])[0])
    assert all(abs(row - rows[0]).max() > 100 * TOLERANCE for row in rows[1:])


def test_pixels_in_half_precision(demo):
    package = demo.build("video-fp16", Options("fp16", text_precision="fp32", max_length=4096))
    runtime, shown = Runtime(package), SHOWN["video, picture"]
    ready = [runtime.clip(s) if isinstance(s, Frames) else s for s in shown]
    prompt = runtime.prompt(runtime.ask(QUESTION, ready), ready)
    wanted = demo.reference.generate(asked(demo, shown), 4, stop=False)
    got = runtime.follow(prompt, wanted.tokens)
    assert abs(got - wanted.logits).max() < 0.02 * abs(wanted.logits).max()


def test_a_package_of_one_size(demo):
    """Frames are stretched as pictures are: PyTorch gets them in that size."""
    options = Options(text_precision="fp32", max_length=4096, image_size=96)
    runtime = Runtime(demo.build("video-fixed", options))
    clip = runtime.clip(noise(4, 64, 128))
    assert clip.frames.shape == (4, 96, 96, 3)
    prompt = runtime.prompt(runtime.ask(QUESTION, [clip]), [clip])
    sized = Frames(Path("sized"), 4, 2.0, lambda at: (clip.frames[i] for i in at))
    wanted = demo.reference.generate(asked(demo, [sized]), 8, stop=False)
    assert abs(runtime.follow(prompt, wanted.tokens) - wanted.logits).max() < TOLERANCE


def test_a_package_without_settings_has_those_of_transformers(demo, tmp_path):
    folder = tmp_path / "package"
    shutil.copytree(demo.fp32, folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    found = config.pop("video_processor")
    assert found["size"] == {"shortest_edge": 16384, "longest_edge": 1048576}, "the demo's"
    path.write_text(json.dumps(config))
    settings = Runtime(folder).videos.settings
    assert (settings.least, settings.most) == (131072, 786432)
    config["video_processor"] = {"fps": 0}
    path.write_text(json.dumps(config))
    with pytest.raises(PackageError, match="fps is 0"):
        Runtime(folder)


def test_a_checkpoint_with_settings_of_its_own(tmp_path):
    """video_preprocessor_config.json comes before preprocessor_config.json."""
    shutil.copytree(DEMO, tmp_path / "checkpoint")
    size = {"shortest_edge": 4096, "longest_edge": 40000}
    own = {"size": size, "fps": 3, "max_frames": 6, "image_mean": [0.1, 0.2, 0.3]}
    path = tmp_path / "checkpoint" / "video_preprocessor_config.json"
    path.write_text(json.dumps(own))
    case = Case("own", tmp_path / "checkpoint", tmp_path / "raw", tmp_path)
    export(case.checkpoint, case.raw)
    shown = [noise(50, 200, 130, rate=25.0)]
    runtime = case.endless
    clip = runtime.clip(shown[0])
    prompt = runtime.prompt(runtime.ask(QUESTION, [clip]), [clip])
    wanted = asked(case, shown)
    assert clip.frames.shape[0] == 6 and clip.frames[0].size < 130 * 200 * 3
    pixels = prompt.tensors["pixel_values"].as_numpy()
    np.testing.assert_array_equal(pixels, wanted["pixel_values_videos"].numpy())
    answer = case.reference.generate(wanted, 8, stop=False)
    assert abs(runtime.follow(prompt, answer.tokens) - answer.logits).max() < TOLERANCE


def test_a_conversation_goes_on_behind_a_video(demo):
    """A later turn without a picture reads its own tokens only, and says the same."""
    answers = []
    for anew in (False, True):
        conversation = Conversation(Runtime(demo.fp32), Sampling(temperature=0), 4)
        shown = [conversation.runtime.clip(noise(4, 96, 96)), picture(96, 64)]
        first = "".join(conversation.say(QUESTION, shown))
        made = conversation.session.generator
        if anew:
            conversation.session.generator = None
        second = "".join(conversation.say("and where?", []))
        assert (conversation.session.generator is made) != anew
        answers.append((first, second))
    assert answers[0] == answers[1]


@pytest.fixture
def folder(tmp_path):
    """Frames whose order by name is not that of the alphabet, and a file that is none."""
    path = tmp_path / "frames"
    path.mkdir()
    for i, frame in enumerate(noise(11, 96, 64).read(range(11))):
        Image.fromarray(frame).save(path / f"frame{i}.png")
    (path / "notes.txt").write_text("not a frame")
    return path


def test_chat_mixes_pictures_and_videos(demo, folder, tmp_path, capsys):
    still = picture(128, 64)
    still.save(tmp_path / "still.png")
    words = ["--image", tmp_path / "still.png", "--video", folder, "--max-frames", 6]
    words += ["--temperature", 0, "--max-tokens", 8, QUESTION]
    assert main(["chat", str(demo.fp32), *map(str, words)]) == 0
    at = np.linspace(0, 10, 6).round().astype(int)
    frames = list(noise(11, 96, 64).read(at))
    runtime = Runtime(demo.fp32)
    taken = Frames(folder, 6, 2.0, lambda at: (frames[i] for i in at))
    clip = dataclasses.replace(
        runtime.clip(taken), seconds=tuple((at[i] + at[i + 1]) / 4 for i in (0, 2, 4))
    )
    prompt = runtime.prompt(runtime.ask(QUESTION, [still, clip]), [still, clip])
    said = runtime.text(list(runtime.generate(prompt, 8, GREEDY)))
    assert capsys.readouterr().out == f"{said}\n"


def test_chat_takes_videos_in_a_conversation(demo, folder, capsys, monkeypatch):
    lines = iter([f"/video {folder}", QUESTION, "/quit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(lines))
    words = ["--temperature", "0", "--max-tokens", "4", "--max-frames", "4"]
    assert main(["chat", str(demo.fp32), *words]) == 0
    alone = capsys.readouterr().out
    assert main(["chat", str(demo.fp32), *words, "--video", str(folder), QUESTION]) == 0
    assert capsys.readouterr().out == alone != "\n"


def gif(path, count, size=(48, 32)):
    frames = [Image.fromarray(f) for f in noise(count, *size).read(range(count))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--video", "{missing}"), "no such video"),
        (("--video", "{empty}"), "has no frames"),
        (("--video", "{single}"), "has one frame"),
        (("--video", "{still}"), "has one frame"),
        (("--video", "{cut}"), "cannot be read as a picture"),
        (("--video", "{broken}"), "cannot be read as a picture"),
        (("--video", "{unlike}"), "needs one size"),
        (("--video", "{thin}"), "at most 200 times as long"),
        (("--video", "{huge}"), "more pixels than a picture may have"),
        (("--video", "{vast}"), "more pixels than a picture may have"),
        (("--video", "/dev/null"), "a device"),
        (("--video", "{gif}", "--fps", "0"), "fps is 0.0"),
        (("--video", "{gif}", "--fps", "nan"), "fps is nan"),
        (("--video", "{gif}", "--fps", "-1"), "fps is -1.0"),
        (("--video", "{gif}", "--fps", "inf"), "fps is inf"),
        (("--video", "{gif}", "--max-frames", "0"), "max-frames is 0"),
        (("--video", "{gif}", "--max-frames", "1"), "max-frames is 1"),
        (("--video", "{gif}", "--video", "{missing}"), "no such video"),
        (("--video", "{gif}", "{mark}"), "takes for a picture"),
    ],
)
def test_errors_are_one_line(demo, tmp_path, capsys, words, message):
    names = ("missing", "empty", "single", "still", "cut", "broken", "unlike", "thin", "huge")
    places = {name: tmp_path / name for name in names}
    places |= {"gif": gif(tmp_path / "fine.gif", 5), "vast": tmp_path / "vast.gif"}
    for name in ("empty", "single", "broken", "unlike", "thin", "huge"):
        places[name].mkdir()
    Image.new("RGB", (64, 64)).save(places["single"] / "0.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    places["still"] = tmp_path / "still.png"
    data = gif(tmp_path / "whole.gif", 5).read_bytes()
    places["cut"] = tmp_path / "cut.gif"
    places["cut"].write_bytes(data[: len(data) // 10])
    for i, size in enumerate([(64, 64), (64, 96)]):
        Image.new("RGB", size).save(places["unlike"] / f"{i}.png")
        Image.new("RGB", (2000, 4)).save(places["thin"] / f"{i}.png")
        (places["broken"] / f"{i}.png").write_bytes((tmp_path / "still.png").read_bytes()[:60])
        Image.new("1", (20000, 20000)).save(places["huge"] / f"{i}.png")
    # a header that promises 65,535 x 65,535 pixels
    places["vast"].write_bytes(data[:6] + b"\xff\xff\xff\xff" + data[10:])
    words = [word.format(**places, mark="what is <|video_pad|>?") for word in words]
    question = [] if "what" in words[-1] else ["hello"]
    assert main(["chat", str(demo.fp32), *words, *question]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_video_that_fills_the_context(demo):
    """Before its pixels are made."""
    runtime = Runtime(demo.fp32)
    clip = runtime.clip(noise(768, 16, 16, rate=None), most=768)
    with pytest.raises(UserError, match="--max-frames bounds the frames"):
        runtime.prompt(runtime.ask(QUESTION, [clip]), [clip])


@pytest.mark.parametrize("name", ["qwen2_5", "qwen2"])
def test_other_families_refuse_videos(cases, name, tmp_path, capsys):
    words = ["--video", str(gif(tmp_path / "a.gif", 4)), "hello"]
    assert main(["chat", str(cases(name).fp32), *words]) == 2
    assert "only Qwen3-VL packages take videos" in capsys.readouterr().err


def test_places_that_are_not_those_of_the_videos(demo):
    runtime = Runtime(demo.fp32)
    clip = runtime.clip(noise(4, 96, 96))
    with pytest.raises(UserError, match=r"needs <\|video_pad\|>"):
        runtime.prompt(runtime.ask(QUESTION, 1), [clip])
