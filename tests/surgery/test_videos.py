"""Frames, their sampling, sizes, times and patches, against transformers' own functions."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import hf_video
import numpy as np
import pytest
import torch
from hf_video import noise, torchvision, video_processor  # noqa: F401
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from surgery.base.demo import DEMO
from surgery.base.errors import UserError
from surgery.base.files import Fields
from surgery.base.frames import open_frames
from surgery.base.pictures import Sizing
from surgery.base.resampling import bicubic
from surgery.base.videos import Settings, VideoProcessor, runs

SIZES = [(16, 16), (64, 48), (500, 300), (300, 500), (1920, 1080), (33, 640), (640, 33), (90, 91)]


def rule(**settings):
    return VideoProcessor(Settings(**settings), Sizing(32, 1, 1 << 24), 16, 2, 2)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 24, 25, 100, 999, 12345])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, 23.976, 25.0, 30.0, 60.0, 1000.0])
def test_sampled_frames_are_those_of_transformers(count, rate):
    own = video_processor(DEMO)
    for fps in (None, 0.3, 1.0, 2.0, 7.77, 100.0):
        wanted = own.sample_frames(
            hf_video.VideoMetadata(total_num_frames=count, fps=rate), fps=fps
        )
        assert rule().sample(count, rate, fps) == wanted.tolist()


@pytest.mark.parametrize("most", [2, 3, 10])
def test_a_largest_number_of_frames(most):
    own = video_processor(DEMO, max_frames=most)
    wanted = own.sample_frames(hf_video.VideoMetadata(total_num_frames=100, fps=4.0))
    assert rule().sample(100, 4.0, most=most) == wanted.tolist() and len(wanted) == most


def test_frames_without_a_rate_are_all_taken():
    assert rule().sample(5, None) == [0, 1, 2, 3, 4]
    assert len(rule().sample(1000, None)) == 768


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [2, 3, 5, 6, 64, 767, 768])
def test_sizes_are_those_of_transformers(size, count):
    width, height = size
    for least, most in ((131072, 786432), (4096, 25165824), (1 << 20, 1 << 22)):
        wanted = smart_resize(count, height, width, factor=32, min_pixels=least, max_pixels=most)
        assert rule(least=least, most=most).target(count, width, height) == wanted[::-1]


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("size", [(40, 24), (160, 90), (700, 500), (96, 64)])
def test_patches_and_times_are_those_of_transformers(size, count, capped):
    """Bit for bit: resizing, normalization and the order of the patches."""
    settings = {"size": {"shortest_edge": 30000, "longest_edge": 600000}, "max_video_tokens": 40}
    own = video_processor(DEMO, cap_pixels_per_frame=capped, **settings)
    ours = rule(least=30000, most=600000, capped=capped, frame_tokens=40)
    video = noise(count, *size, rate=2.0)
    clip = ours.clip(video)
    found = own(
        [np.stack(list(video.read(range(count))))],
        video_metadata=[hf_video.metadata(video)],
        return_metadata=True,
        return_tensors="pt",
    )
    grid = found["video_grid_thw"][0].tolist()
    assert [len(clip.seconds), *clip.grid] == grid and clip.tokens == grid[1] * grid[2] // 4
    rows = np.empty((math.prod(grid), 1536), np.float32)
    ours.rows(clip, rows)
    np.testing.assert_array_equal(rows, found["pixel_values_videos"].numpy())
    (about,) = found["video_metadata"]
    times = Qwen3VLProcessor._calculate_timestamps(None, about.frames_indices, about.fps, 2)
    assert clip.seconds == tuple(times)


@pytest.mark.parametrize("seed", range(60))
def test_resampling_is_torchs(seed):
    """Bit for bit; noise, black and white, and slopes, in both directions."""
    rng = np.random.default_rng(seed)
    height, width, high, wide = (int(n) for n in rng.integers(1, 150, 4))
    if seed % 4 == 0:
        high = height
    if seed % 5 == 0:
        width *= 9
    kinds = (
        rng.integers(0, 256, (height, width, 3)),
        rng.integers(0, 2, (height, width, 3)) * 255,
        np.cumsum(rng.integers(0, 3, (height, width, 3)), 1) % 256,
    )
    frame = kinds[seed % 3].astype(np.uint8)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous(),
        size=(high, wide),
        mode="bicubic",
        antialias=True,
    )[0].permute(1, 2, 0)
    np.testing.assert_array_equal(bicubic(frame, wide, high), wanted.numpy())


@pytest.mark.parametrize(
    ("grids", "most", "wanted"),
    [
        ([[1, 4, 4]] * 5, 80, [[5, 4, 4]]),
        ([[1, 4, 4]] * 5, 79, [[4, 4, 4], [1, 4, 4]]),
        ([[1, 4, 4]] * 4, 32, [[2, 4, 4], [1, 4, 4], [1, 4, 4]]),  # equal ones would be one run
        ([[1, 4, 4]] * 3, 1, [[1, 4, 4], [2, 4, 4]]),
        ([[1, 4, 4]] * 2, 1, [[2, 4, 4]]),
        ([[1, 4, 4]] * 3, 0, [[1, 4, 4]] * 3),
        ([[1, 4, 4]] * 3, math.inf, [[3, 4, 4]]),
        ([[1, 4, 4]], 1, [[1, 4, 4]]),
        ([[1, 4, 2], [1, 2, 4], [1, 2, 4]], 16, [[1, 4, 2], [2, 2, 4]]),
        ([[1, 4, 2], [1, 2, 4], [1, 4, 2]], 16, [[1, 4, 2], [1, 2, 4], [1, 4, 2]]),
    ],
)
def test_runs_of_the_vision_graph(grids, most, wanted):
    assert runs(grids, most) == wanted


def test_settings_come_back_as_written():
    own = Settings(1, 2, 3.0, 4, 5, True, 6, 0.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Settings.of(Fields(Path("file"), own.record(), UserError)) == own
    assert Settings.of(Fields(Path("file"), {}, UserError)) == Settings()


def test_defaults_are_those_of_transformers():
    own, ours = hf_video.Qwen3VLVideoProcessor(), Settings()
    assert own.size == {"shortest_edge": ours.least, "longest_edge": ours.most}
    assert (own.fps, own.min_frames, own.max_frames) == (2, ours.min_frames, ours.max_frames)
    assert (own.max_video_tokens, own.rescale_factor) == (ours.frame_tokens, ours.rescale)
    assert tuple(own.image_mean) == ours.mean and tuple(own.image_std) == ours.std
    assert ours.fps == 2 and not ours.capped and not own.cap_pixels_per_frame


def pixels(count=5, size=(48, 32), colors=256):
    """Frames of so few colours that any format holds them all."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, colors, (32, 3), np.uint8)
    return table[rng.integers(0, 32, (count, size[1], size[0]))]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_animations(tmp_path, kind):
    frames = [Image.fromarray(frame) for frame in pixels()]
    durations = [100, 100, 200, 300, 300]
    path = tmp_path / f"animation.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)
    video = open_frames(path)
    assert video.count == 5
    assert video.rate == (None if kind == "tiff" else pytest.approx(5.0))
    found = list(video.read([0, 2, 3, 4]))
    np.testing.assert_array_equal(np.stack(found), pixels()[[0, 2, 3, 4]])


def test_a_gif_without_times(tmp_path):
    frames = [Image.fromarray(frame) for frame in pixels(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_frames(tmp_path / "a.gif").rate == 10


def test_frames_of_a_folder_in_the_order_of_their_numbers(tmp_path):
    for i, frame in enumerate(pixels(12)):
        Image.fromarray(frame).save(tmp_path / f"f{i}.{'png' if i % 2 else 'bmp'}")
    (tmp_path / "readme.md").write_text("no frame")
    video = open_frames(tmp_path)
    assert (video.count, video.rate) == (12, None)
    np.testing.assert_array_equal(np.stack(list(video.read(range(12)))), pixels(12))


def test_a_video_file_without_pyav(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0" * 1000)
    monkeypatch.setattr("surgery.base.frames.find_spec", lambda name: None)
    with pytest.raises(UserError, match="install PyAV"):
        open_frames(path)


def encode(path, codec, frames, rate):
    import av

    with av.open(path, "w") as made:
        stream = made.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        made.mux(stream.encode(None))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4")])
def test_video_files_as_transformers_reads_them(tmp_path, name, codec):
    pytest.importorskip("av")
    from transformers.video_utils import read_video_pyav

    frames = pixels(25, (96, 64))
    encode(tmp_path / name, codec, frames, 10)
    video = open_frames(tmp_path / name)
    assert (video.count, video.rate) == (25, 10.0)
    at = rule().sample(video.count, video.rate)
    assert at == [0, 6, 12, 18, 24]
    wanted, _ = read_video_pyav(str(tmp_path / name), lambda metadata: at)
    np.testing.assert_array_equal(np.stack(list(video.read(at))), wanted)
    assert abs(wanted.astype(float) - frames[at]).mean() < 60, "the frames that were written"


ORIENTATIONS = {
    "as stored": ((1, 0, 0, 1), lambda frame: frame),
    "quarter clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # an upright phone
    "half": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "quarter counterclockwise": ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "mirrored, counterclockwise": ((0, 1, 1, 0), lambda frame: np.rot90(np.fliplr(frame))),
    "mirrored, clockwise": ((0, -1, -1, 0), lambda frame: np.rot90(np.fliplr(frame), -1)),
    "enlarged, quarter clockwise": ((0, 2, -2, 0), lambda frame: np.rot90(frame, -1)),
    "nothing": ((0, 0, 0, 0), lambda frame: frame),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_frames_of_a_video_file_are_upright(tmp_path, name):
    """The matrix of the track, in the box `tkhd` of the file, is what a phone writes."""
    pytest.importorskip("av")
    (a, b, c, d), turned = ORIENTATIONS[name]
    encode(tmp_path / "a.mp4", "mpeg4", pixels(5, (96, 64)), 2)
    stored = list(open_frames(tmp_path / "a.mp4").read(range(5)))
    data = (tmp_path / "a.mp4").read_bytes()
    at = data.index(b"tkhd") + 44
    whole = struct.Struct(">9i")
    assert whole.unpack_from(data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    matrix = whole.pack(a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data[:at] + matrix + data[at + 36 :])
    video = open_frames(tmp_path / "a.mp4")
    wanted = [turned(frame) for frame in stored]
    np.testing.assert_array_equal(np.stack(list(video.read(range(5)))), np.stack(wanted))
    height, width = wanted[0].shape[:2]
    ours = rule(least=4096)
    clip = ours.clip(video)
    assert clip.frames.shape[1:3] == (height, width) and clip.grid == (height // 16, width // 16)
    small = rule(least=4096, most=20000)  # the bound makes frames smaller, the long side stays long
    high, wide = small.clip(video).frames.shape[1:3]
    assert high * wide < height * width and (high > wide) == (height > width)


def test_a_file_with_fewer_frames_than_it_says():
    video = noise(9, 64, 64, rate=2.0)
    short = hf_video.Frames(
        video.path, 12, 2.0, lambda at: (f for i in at if i < 9 for f in video.read([i]))
    )
    clip = rule().clip(short)
    assert clip.frames.shape[0] == 10 and len(clip.seconds) == 5
    none = hf_video.Frames(video.path, 12, 2.0, lambda at: iter(()))
    with pytest.raises(UserError, match="fewer than two"):
        rule().clip(none)


@pytest.mark.parametrize("named", ["{folder}/a.mp4", "a.mp4"])
def test_a_file_that_names_other_files_is_not_followed(tmp_path, named):
    """The second would be, if the decoder were not told to open nothing."""
    av = pytest.importorskip("av")
    encode(tmp_path / "a.mp4", "mpeg4", pixels(25, (96, 64)), 10)
    name, path = named.format(folder=tmp_path), tmp_path / "list.txt"
    path.write_text(f"ffconcat version 1.0\nfile {name}\n")
    with pytest.raises(UserError, match="cannot be read as a video"):
        open_frames(path)
    if name == "a.mp4":
        with av.open(path) as followed:
            assert len(list(followed.decode(video=0))) == 25


def test_a_cut_video_file(tmp_path, capfd):
    pytest.importorskip("av")
    encode(tmp_path / "a.mp4", "mpeg4", pixels(25, (96, 64)), 10)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read as a video"):
        open_frames(tmp_path / "a.mp4")
    assert capfd.readouterr() == ("", "")
