"""Prepare pictures for the image processor of onnxruntime-genai.

The picture loader of onnxruntime-genai reads PNG and JPEG, ends the process on any other format,
and ignores EXIF orientation. Its processor rounds half up, while transformers rounds half to even,
so that some pictures would get different sizes. A picture is therefore read with Pillow, turned
upright, and resized to the size that `smart_resize` of transformers computes; neither processor
resizes such a picture again.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from surgery.base.errors import UserError, first_line
from surgery.base.files import read_bytes

MOST_BYTES = 1 << 29
"""Largest picture file."""
BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError),
    *(IndexError, KeyError, TypeError, struct.error),
)
"""What Pillow's readers raise for a broken file."""
PROGRAMS = ("EPS",)
"""Formats that Pillow gives to another program to run."""
LONGEST_ASPECT = 200
"""Largest ratio of the longer side to the shorter one, as in `smart_resize` of transformers."""


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB with its EXIF orientation applied. An animation gives its first frame.

    Raises:
        UserError: the file does not exist, or Pillow cannot read it.
    """
    path = Path(path)
    with reading(path), opened_picture(path) as image:
        return rgb(ImageOps.exif_transpose(image))


def opened_picture(path: Path) -> Image.Image:
    """A picture or animation of which Pillow has read the header; see `reading` for its errors.

    Raises:
        UserError: the file does not exist or is too large.
    """
    data = read_bytes(path, UserError, MOST_BYTES, f"{path}: no such picture.")
    return Image.open(io.BytesIO(data), formats=formats())


def formats() -> list[str]:
    """Names of the formats that Pillow reads by itself."""
    Image.init()
    return [name for name in Image.ID if name not in PROGRAMS]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a broken file, or a picture too large, into a `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError as e:
        raise UserError(f"{path}: not a picture in a format that Pillow reads.") from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise UserError(f"{path}: more pixels than a picture may have: {first_line(e)}") from e
    except BROKEN as e:
        raise UserError(f"{path}: cannot be read as a picture: {first_line(e)}.") from e


def rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB with eight bits per channel. Alpha is dropped, as in transformers."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def png(image: Image.Image) -> bytes:
    """Return the picture as PNG, which onnxruntime-genai reads without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class Sizing:
    """The rule by which a package's processor resizes pictures.

    Attributes:
        unit: both sides become multiples of this number of pixels.
        least: smallest number of pixels.
        most: largest number of pixels.
        fixed: the size (width, height) of every picture if the package is built for one size.
    """

    unit: int
    least: int
    most: int
    fixed: tuple[int, int] | None = None

    @classmethod
    def of(cls, processor: Mapping[str, Any]) -> Sizing:
        """Read the rule from the content of processor_config.json.

        Raises:
            KeyError: there is no Resize step.
        """
        for transform in processor["processor"]["transforms"]:
            operation = transform["operation"]
            if operation["type"] == "Resize":
                attrs = operation["attrs"]
                fixed = None
                if not attrs.get("smart_resize"):
                    fixed = int(attrs["width"]), int(attrs["height"])
                unit = int(attrs.get("patch_size", 1)) * int(attrs.get("merge_size", 1))
                least, most = attrs.get("min_pixels", 0), attrs.get("max_pixels", 0)
                return cls(unit, int(least), int(most), fixed)
        raise KeyError("Resize")

    def apply(self, image: Image.Image) -> Image.Image:
        """Resize a picture to its final size, with bicubic resampling as in transformers."""
        size = self.target(*image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height as `smart_resize` of transformers computes them.

        Raises:
            UserError: the aspect ratio is too large.
        """
        if self.fixed is not None:
            return self.fixed
        if max(width, height) > LONGEST_ASPECT * min(width, height):
            raise UserError(
                f"a picture of {width} x {height}: one side may be at most {LONGEST_ASPECT} times "
                f"as long as the other."
            )
        unit = self.unit
        w, h = round(width / unit) * unit, round(height / unit) * unit
        if w * h > self.most:
            shrink = math.sqrt(width * height / self.most)
            w = max(unit, math.floor(width / shrink / unit) * unit)
            h = max(unit, math.floor(height / shrink / unit) * unit)
        elif w * h < self.least:
            enlarge = math.sqrt(self.least / (width * height))
            w = math.ceil(width * enlarge / unit) * unit
            h = math.ceil(height * enlarge / unit) * unit
        return w, h
