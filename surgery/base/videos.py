"""Prepare videos as the video processor of Qwen3-VL in transformers does.

Frames are sampled evenly, resized so that all of them together keep within a number of pixels, and
cut into patches of two frames: the rows of `pixel_values`. A prompt gives each pair of frames a
place of its own, with the pair's time in front. onnxruntime-genai's processor has no videos; for
it, a pair of frames is a picture whose two slices differ.

Source: `video_processing_qwen3_vl.py` and `processing_qwen3_vl.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery.base.errors import PackageError, UserError
from surgery.base.files import Fields
from surgery.base.frames import Frames
from surgery.base.pictures import LONGEST_ASPECT, Sizing
from surgery.base.prompts import VIDEO_PAD, VISION_END, VISION_START
from surgery.base.resampling import bicubic

KEY = "video_processor"
"""Where processor_config.json has the settings, as in transformers; the runtime ignores it."""
MOST_FRAMES = 1 << 20
MOST_PIXELS = 1 << 30
"""Pixels of all frames together, at most."""
MOST_RATE = 1000.0
"""Frames a second, at most."""


@dataclass(frozen=True)
class Settings:
    """The settings of a video processor.

    Attributes:
        least: smallest number of pixels of all frames together.
        most: largest number of pixels of all frames together.
        fps: frames to sample from a second.
        min_frames: smallest number of frames, where the video has them.
        max_frames: largest number of frames.
        capped: whether `frame_tokens` bounds the tokens of a frame, however few frames there are.
        frame_tokens: see `capped`.
        rescale: factor from eight bits to 0..1.
        mean: of each channel, after that.
        std: of each channel, after that.
    """

    least: int = 128 * 32 * 32
    most: int = 768 * 32 * 32
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    capped: bool = False
    frame_tokens: int = 768
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, config: Fields) -> Settings:
        """Read the settings; what is absent is as in transformers.

        Raises:
            UserError: of the class of `config`: a value is of another kind or out of range.
        """
        own = cls()
        least, most, mean, std = own.least, own.most, own.mean, own.std
        if "size" in config:
            size = config.inner("size")
            least = size.integer("shortest_edge", 1, MOST_PIXELS)
            most = size.integer("longest_edge", 1, MOST_PIXELS)
        if "image_mean" in config:
            mean = tuple(config.numbers("image_mean", -256, 256, 3))
        if "image_std" in config:
            std = tuple(config.numbers("image_std", 1e-6, 256, 3))
        return cls(
            least,
            most,
            config.number("fps", 1e-3, MOST_RATE, own.fps),
            config.integer("min_frames", 1, MOST_FRAMES, own.min_frames),
            config.integer("max_frames", 2, MOST_FRAMES, own.max_frames),
            config.flag("cap_pixels_per_frame", own.capped),
            config.integer("max_video_tokens", 1, 1 << 20, own.frame_tokens),
            config.number("rescale_factor", 1e-9, 1, own.rescale),
            mean,
            std,
        )

    def record(self) -> dict[str, Any]:
        """The settings by the names that transformers has."""
        return {
            "size": {"shortest_edge": self.least, "longest_edge": self.most},
            "fps": self.fps,
            "min_frames": self.min_frames,
            "max_frames": self.max_frames,
            "cap_pixels_per_frame": self.capped,
            "max_video_tokens": self.frame_tokens,
            "rescale_factor": self.rescale,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


@dataclass(frozen=True, eq=False)
class Clip:
    """A video ready for a prompt.

    Attributes:
        frames: sampled and resized, a multiple of the patch's frames, `[N, H, W, 3]` uint8.
        seconds: the time of each temporal patch.
        grid: patches of a frame: rows and columns.
        tokens: of each temporal patch.
    """

    frames: npt.NDArray[np.uint8]
    seconds: tuple[float, ...]
    grid: tuple[int, int]
    tokens: int

    @property
    def grids(self) -> list[list[int]]:
        """Time, rows and columns of each temporal patch."""
        return [[1, *self.grid] for _ in self.seconds]

    @property
    def text(self) -> str:
        """What stands in a prompt for `VIDEO_PAD`: time and place of each temporal patch."""
        place = VISION_START + VIDEO_PAD * self.tokens + VISION_END
        return "".join(f"<{second:.1f} seconds>{place}" for second in self.seconds)


@dataclass(frozen=True)
class VideoProcessor:
    """The rule by which videos become input of a package.

    Attributes:
        settings: see `Settings`.
        sizing: the rule for pictures.
        patch: pixels along a side of a patch.
        merge: patches along a side of a token.
        depth: frames of a temporal patch.
    """

    settings: Settings
    sizing: Sizing
    patch: int
    merge: int
    depth: int

    @classmethod
    def of(cls, file: Path, processor: Mapping[str, Any]) -> VideoProcessor:
        """Read the rule from the content of processor_config.json; older ones have no settings.

        Raises:
            PackageError: a setting is of another kind or out of range.
        """
        config = Fields(file, processor, PackageError)
        settings = Settings.of(config.inner(KEY)) if KEY in config else Settings()
        steps = (step["operation"] for step in processor["processor"]["transforms"])
        patch = next(step["attrs"] for step in steps if step["type"] == "PatchImage")
        sides = patch["patch_size"], patch["merge_size"], patch["temporal_patch_size"]
        return cls(settings, Sizing.of(processor), *sides)

    def clip(self, video: Frames, fps: float | None = None, most: int | None = None) -> Clip:
        """Sample and resize a video.

        Where nothing says how fast the frames of a video follow each other, they count as sampled
        already, `fps` of them a second.

        Args:
            video: from `open_frames`.
            fps: frames to sample from a second; None as the settings have it.
            most: largest number of frames; None as the settings have it.

        Raises:
            UserError: the frames cannot be read, or not be resized.
        """
        check_sampling(fps, most)
        indices = self.sample(video.count, video.rate, fps, most)
        frames = self.resized(video, indices)
        while len(frames) < len(indices):  # a file has fewer frames than it says
            if len(frames) < 2:
                raise UserError(f"{video.path}: fewer than two of its frames can be read.")
            indices = indices[: len(frames)]
            frames = self.resized(video, indices)
        missing = -len(frames) % self.depth
        frames, indices = frames + frames[-1:] * missing, indices + indices[-1:] * missing
        rate = video.rate or fps or self.settings.fps
        pairs = zip(indices[:: self.depth], indices[self.depth - 1 :: self.depth])
        height, width = frames[0].shape[:2]
        grid = height // self.patch, width // self.patch
        return Clip(
            np.stack(frames),
            tuple((first / rate + last / rate) / 2 for first, last in pairs),
            grid,
            grid[0] * grid[1] // self.merge**2,
        )

    def sample(
        self, count: int, rate: float | None, fps: float | None = None, most: int | None = None
    ) -> list[int]:
        """Positions of the sampled ones among `count` frames, as `sample_frames` of transformers.

        Args:
            count: frames of the video.
            rate: frames of the video a second; None takes every frame.
            fps: as for `clip`.
            most: as for `clip`.
        """
        own = self.settings
        wanted = count if rate is None else int(count / rate * (fps or own.fps))
        number = min(max(wanted, own.min_frames), most or own.max_frames, count)
        return [int(at) for at in np.linspace(0, count - 1, number).round()]

    def resized(self, video: Frames, indices: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """The frames at these positions, one at a time in full size.

        Raises:
            UserError: they cannot be read, differ in size, or are too long and thin.
        """
        found: list[npt.NDArray[np.uint8]] = []
        size: tuple[int, int] | None = None
        for frame in video.read(indices):
            height, width = frame.shape[:2]
            if size is None:
                size = width, height
                target = self.target(len(indices), width, height)
            elif size != (width, height):
                raise UserError(
                    f"{video.path}: frames of {size[0]} x {size[1]} and of {width} x {height}, "
                    f"needs one size."
                )
            found.append(bicubic(frame, *target))
        return found

    def target(self, count: int, width: int, height: int) -> tuple[int, int]:
        """Width and height that `count` frames get, as `smart_resize` of transformers for videos.

        Raises:
            UserError: the aspect ratio is too large.
        """
        if self.sizing.fixed is not None:
            return self.sizing.fixed
        own, unit = self.settings, self.patch * self.merge
        least, most = own.least, own.most
        if own.capped:
            share = min(own.frame_tokens * unit * unit, most // count)
            most = max(share, int(least * 1.05)) * count
        if min(width, height) < unit:
            scale = max(unit / height, unit / width)
            width, height = int(width * scale), int(height * scale)
        if max(width, height) > LONGEST_ASPECT * min(width, height):
            raise UserError(
                f"a video of {width} x {height}: one side may be at most {LONGEST_ASPECT} times as "
                f"long as the other."
            )
        w, h = round(width / unit) * unit, round(height / unit) * unit
        pixels = round(count / self.depth) * self.depth * w * h
        if pixels > most:
            shrink = math.sqrt(count * height * width / most)
            w = max(unit, math.floor(width / shrink / unit) * unit)
            h = max(unit, math.floor(height / shrink / unit) * unit)
        elif pixels < least:
            enlarge = math.sqrt(least / (count * height * width))
            w = math.ceil(width * enlarge / unit) * unit
            h = math.ceil(height * enlarge / unit) * unit
        return w, h

    def rows(self, clip: Clip, out: npt.NDArray[Any]) -> None:
        """Write the patches of a clip.

        Args:
            clip: from `clip`.
            out: `[temporal patches * grid, 3 * depth * patch * patch]`, of any floating type.
        """
        scale = np.float32(1.0 / self.settings.rescale)
        mean = np.array(self.settings.mean, np.float32) * scale
        std = np.array(self.settings.std, np.float32) * scale
        (rows, columns), merge, side = clip.grid, self.merge, self.patch
        shape = self.depth, rows // merge, merge, side, columns // merge, merge, side, 3
        each = rows * columns
        for at in range(len(clip.seconds)):
            frames = clip.frames[at * self.depth : (at + 1) * self.depth]
            values = ((frames.astype(np.float32) - mean) / std).reshape(shape)
            # rows: merged rows, merged columns, rows, columns; columns: channel, frame, y, x
            out[at * each : (at + 1) * each] = values.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(
                each, -1
            )


def runs(grids: Sequence[list[int]], most: float) -> list[list[int]]:
    """Grids of the runs in which the vision graph takes pictures: neighbours of one size together.

    The graph takes a run of N pictures as N frames, which do not see each other. The runtime takes
    all of `image_grid_thw` at once if its grids are equal, and else one after the other
    (`QwenVisionState::Run` of onnxruntime-genai): so the last run is made unlike the others.

    Args:
        grids: time (1), rows and columns of each picture.
        most: patches of a run, where a picture has fewer; 0 for each picture by itself.

    Returns:
        Pictures, rows and columns of each run.
    """
    found: list[list[int]] = []
    for _, rows, columns in grids:
        fits = found and (found[-1][0] + 1) * rows * columns <= most
        if fits and found[-1][1:] == [rows, columns]:
            found[-1][0] += 1
        else:
            found.append([1, rows, columns])
    if most and len(found) > 1 and all(run == found[0] for run in found):
        count, *size = found.pop()
        if count > 1:
            found += [[count - 1, *size], [1, *size]]
        else:
            found[-1] = [2, *size]
    return found


def check_sampling(fps: float | None, most: int | None) -> None:
    """Refuse what means nothing.

    Raises:
        UserError: the rate or the number of frames is out of range.
    """
    if fps is not None and not 1e-3 <= fps <= MOST_RATE:
        raise UserError(f"fps is {fps}, must be from 0.001 to {MOST_RATE:,.0f}.")
    if most is not None and not 2 <= most <= MOST_FRAMES:
        raise UserError(f"max-frames is {most}, must be from 2 to {MOST_FRAMES:,}.")
