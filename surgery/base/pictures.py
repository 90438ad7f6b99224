"""Pictures for the runtime's image processor: any format Pillow reads becomes upright RGB.

The runtime's own loader takes PNG and JPEG, ends the process on anything else, ignores EXIF
orientation, and rounds some sizes to another grid than Hugging Face's processor. So a picture is
brought here to the very size that `smart_resize` gives, where both sides leave it alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from surgery.base.errors import UserError

LONGEST_ASPECT = 200
"""Sides differ by this factor at most (`smart_resize` in transformers)."""


def open_picture(path: str | Path) -> Image.Image:
    """A picture file as upright RGB; of an animation, the first frame.

    Raises:
        UserError: no such file, or nothing that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            return rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as e:
        raise UserError(f"{path}: not a picture in a format that Pillow reads.") from e
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such picture.") from e
    except Image.DecompressionBombError as e:
        raise UserError(f"{path}: {e}") from e
    except (OSError, SyntaxError, ValueError) as e:  # Pillow's words for a broken file
        raise UserError(f"{path}: cannot be read as a picture: {e}.") from e


def rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel; alpha is dropped, as Hugging Face's processor does."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def png(image: Image.Image) -> bytes:
    """The picture in a format that the runtime reads without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class Sizing:
    """The size that a package's processor gives a picture.

    Attributes:
        unit: both sides become multiples of it.
        least: fewest pixels.
        most: most pixels.
        fixed: the one size (width, height) of a package built for it.
    """

    unit: int
    least: int
    most: int
    fixed: tuple[int, int] | None = None

    @classmethod
    def of(cls, processor: Mapping[str, Any]) -> Sizing:
        """Read from processor_config.json."""
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
        """The picture in its final size; the resampling is Hugging Face's."""
        size = self.target(*image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as `smart_resize` of transformers has them.

        Raises:
            UserError: a side is too long for the other.
        """
        if self.fixed is not None:
            return self.fixed
        if max(width, height) > LONGEST_ASPECT * min(width, height):
            raise UserError(
                f"a picture of {width} x {height}: one side may be {LONGEST_ASPECT} times the "
                f"other at most."
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
