"""The processor of Qwen3-VL in transformers, for pictures and videos, with or without torchvision.

Its video processor takes three functions on tensors from torchvision. Where that is not installed,
they are written out here; torchvision resizes frames of eight bits by the same function of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, image_processing_backends, video_processing_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from surgery.base.frames import Frames


class Functional:
    """What the processor takes from torchvision.transforms.v2.functional."""

    class InterpolationMode:
        LANCZOS = "lanczos"

    @staticmethod
    def resize(
        image: torch.Tensor, size: tuple[int, int], interpolation: str, antialias: bool
    ) -> torch.Tensor:
        assert image.dtype == torch.uint8
        flat = image.flatten(0, -4)
        found = torch.nn.functional.interpolate(
            flat, size=size, mode=interpolation, antialias=antialias, align_corners=False
        )
        return found.unflatten(0, image.shape[:-3])

    @staticmethod
    def normalize(
        image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, inplace: bool
    ) -> torch.Tensor:
        return (image - mean[:, None, None]) / std[:, None, None]

    @staticmethod
    def grayscale_to_rgb(video: torch.Tensor) -> torch.Tensor:
        assert video.shape[-3] == 3
        return video


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> Iterator[None]:
    """Import this into a module of tests to give its processors what they need."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_torchvision_available():
            for module in (image_processing_backends, video_processing_utils):
                patch.setattr(module, "tvF", Functional, raising=False)
            names = {Image.Resampling.BICUBIC: "bicubic"}
            patch.setattr(image_processing_backends, "pil_torch_interpolation_mapping", names)
        yield


def video_processor(checkpoint: Path, **settings: Any) -> Qwen3VLVideoProcessor:
    """The video processor of a checkpoint; the pinned version warns unless a cap is chosen."""
    return Qwen3VLVideoProcessor.from_pretrained(
        checkpoint, **{"cap_pixels_per_frame": False, **settings}
    )


class Processor(Qwen3VLProcessor):
    """Takes its parts as they are: the check of their classes needs torchvision too."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        return type(argument)


def processor(checkpoint: Path) -> Qwen3VLProcessor:
    """The whole processor of a checkpoint."""
    return Processor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        video_processor=video_processor(checkpoint),
    )


def inputs(
    own: Qwen3VLProcessor, prompt: str, pictures: Sequence[Image.Image], videos: Sequence[Frames]
) -> dict[str, torch.Tensor]:
    """What the model takes for a prompt; all frames of a video without a rate are taken."""
    every = [np.stack(list(video.read(range(video.count)))) for video in videos]
    given: dict[str, Any] = {}
    if pictures:
        given["images"] = list(pictures)
    if videos:
        given |= {"videos": every, "video_metadata": [metadata(video) for video in videos]}
    return dict(own(text=[prompt], return_tensors="pt", **given))


def metadata(video: Frames) -> VideoMetadata:
    assert video.rate is not None
    return VideoMetadata(total_num_frames=video.count, fps=video.rate)


def noise(count: int, width: int, height: int, rate: float | None = 2.0, seed: int = 0) -> Frames:
    """A video of random frames."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    return Frames(Path("noise"), count, rate, lambda at: (frames[i] for i in at))
