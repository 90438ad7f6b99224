"""Frames out of a folder, an animation that Pillow reads, or a video file that PyAV reads.

Frames of a video file are turned as its display matrix says, the way players show them. Pictures of
a folder are turned as their EXIF data says.

PyAV is optional. A video file that names other files or addresses, as playlists do, is not
followed: the decoder gets the one open file and no protocol to open another.
"""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from surgery.base.errors import UserError, first_line
from surgery.base.files import kind_of, located
from surgery.base.pictures import BROKEN, formats, open_picture, opened_picture, reading, rgb

Frame = npt.NDArray[np.uint8]
"""`[H, W, 3]`."""

UNTIMED = 100.0
"""Milliseconds of a frame of an animation that says 0, as browsers show it."""
MOST_PIXELS = 1 << 27
"""Pixels of a frame of a video file."""


@dataclass(frozen=True)
class Frames:
    """A video that is not decoded yet.

    Attributes:
        path: where it is.
        count: frames that it says it has.
        rate: frames a second; None where nothing says so, as in a folder.
        read: decodes the frames at ascending positions, one at a time.
    """

    path: Path
    count: int
    rate: float | None
    read: Callable[[Sequence[int]], Iterator[Frame]]


def open_frames(path: str | Path) -> Frames:
    """Look at a video.

    Raises:
        UserError: there is none, it has fewer than two frames, or nothing can read it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = folder(path)
        elif not path.exists():
            raise UserError(f"{path}: no such video.")
        elif not path.is_file():
            raise UserError(f"{path}: {kind_of(path)}, must be a file or a folder of frames.")
        else:
            found = animation(path) if pillow_knows(path) else video_file(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{located(path)}: cannot be read as a video: {e}.") from e
    if found.count < 2:
        many = "one frame" if found.count == 1 else "no frames"
        raise UserError(f"{path}: has {many}, a video needs two or more.")
    return found


def folder(path: Path) -> Frames:
    """The pictures in a folder, in the order of their names; numbers count as numbers."""
    Image.init()
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in Image.registered_extensions() and not file.name.startswith(".")
    ]
    files.sort(key=lambda file: [(int(n or 0), t) for n, t in re.findall(r"(\d*)(\D*)", file.name)])

    def read(positions: Sequence[int]) -> Iterator[Frame]:
        for at in positions:
            yield np.asarray(open_picture(files[at]))

    return Frames(path, len(files), None, read)


def pillow_knows(path: Path) -> bool:
    """Whether Pillow knows the format of a file, which need not be whole."""
    kinds = [name for name in formats() if name != "MPEG"]  # of which it reads the header alone
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            Image.open(file, formats=kinds)
        except UnidentifiedImageError:
            return False
        except (Image.DecompressionBombError, *BROKEN):
            return True  # reading it says what is wrong
    return True


def animation(path: Path) -> Frames:
    """An animation that Pillow reads. The mean time of its frames is that of each."""
    with reading(path), opened_picture(path) as image:
        count = getattr(image, "n_frames", 1)
        times = []
        for at in range(count):
            image.seek(at)
            image.load()  # WebP knows the time only then
            times.append(float(image.info.get("duration") or 0))
    timed = any(times) or image.format == "GIF"
    rate = 1000 * count / sum(time or UNTIMED for time in times) if timed else None

    def read(positions: Sequence[int]) -> Iterator[Frame]:
        with opened_picture(path) as image:
            for at in positions:
                with reading(path):
                    image.seek(at)
                    frame = np.asarray(rgb(image))
                yield frame

    return Frames(path, count, rate, read)


def video_file(path: Path) -> Frames:
    """A file that PyAV reads.

    Raises:
        UserError: PyAV is not installed, or cannot read it.
    """
    if find_spec("av") is None:
        raise UserError(
            f"{path}: no animation that Pillow reads. For video files install PyAV (pip install av)"
            f"; a folder of frames needs nothing."
        )
    with container(path) as opened:
        if not opened.streams.video:
            raise UserError(f"{path}: has no video in it.")
        stream = opened.streams.video[0]
        rate = float(stream.average_rate or 0) or None
        count = stream.frames or sum(1 for _ in opened.decode(video=0))

    def read(positions: Sequence[int]) -> Iterator[Frame]:
        wanted, last = set(positions), max(positions)
        with container(path) as opened:
            for at, frame in enumerate(opened.decode(video=0)):
                if at in wanted:
                    if frame.width * frame.height > MOST_PIXELS:
                        raise UserError(f"{path}: more than {MOST_PIXELS:,} pixels in a frame.")
                    matrix = frame.side_data.get("DISPLAYMATRIX")
                    pixels = frame.to_ndarray(format="rgb24")
                    yield pixels if matrix is None else upright(pixels, bytes(matrix))
                if at >= last:
                    return

    return Frames(path, count, rate, read)


def upright(frame: Frame, matrix: bytes) -> Frame:
    """Turn and mirror a frame as its file's display matrix says.

    Exact for the eight ways to turn by quarters and to mirror; others count as the nearest of them.
    What the matrix says of scale and place is ignored.

    Args:
        frame: as stored, `[H, W, 3]`.
        matrix: nine integers of 32 bits, a b u c d v x y w, that take a pixel at (p, q) to
            (a p + c q + x, b p + d q + y). Source: libavutil/display.h of FFmpeg.

    Returns:
        As shown, `[H, W, 3]` or `[W, H, 3]`.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if abs(b) + abs(c) > abs(a) + abs(d):
        frame, right, down = frame.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return np.ascontiguousarray(frame[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


@contextlib.contextmanager
def container(path: Path) -> Iterator[Any]:
    """A video file in PyAV; what goes wrong while it is open becomes one line."""
    import av

    av.logging.set_level(av.logging.PANIC)  # its decoders write to standard error
    try:
        # "none" is no protocol: what the file names is not opened
        with path.open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as made:
            yield made
    except (av.FFmpegError, OSError, ValueError) as e:
        said = first_line(e).rstrip(".")
        raise UserError(f"{path}: cannot be read as a video: {said}.") from e
