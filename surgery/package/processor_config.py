"""Write processor_config.json: the checkpoint's image processor for onnxruntime-extensions."""

from __future__ import annotations

from typing import Any

from surgery.base.errors import PackageError
from surgery.base.videos import KEY
from surgery.engine.facts import Facts


def processor_config(facts: Facts) -> dict[str, Any]:
    """Return the transforms from a picture file to `pixel_values` and `image_grid_thw`.

    Pictures keep their aspect ratio, unless the package is built for one size: then every picture
    is stretched to that square.

    The runtime has no videos and ignores their settings, which `VideoProcessor` reads.

    The numbers come from preprocessor_config.json of the checkpoint. `ConvertRGB` and the flag
    `qwen3_vl` of `Normalize` both swap the red and blue channels, so a configuration needs both or
    neither.

    Raises:
        PackageError: the checkpoint's processor leaves out a step that the runtime always takes,
            or has a number that is out of range or not that of config.json.
    """
    p = facts.preprocessor
    steps_taken = ("do_resize", "do_rescale", "do_normalize")
    off = [name for name in steps_taken if not p.flag(name, True)]
    if off:
        raise PackageError(
            f"preprocessor_config.json: {off[0]} is false, needs to be true. "
            "The runtime always runs this step."
        )
    least, most = facts.pixels
    side = facts.options.image_size or 384
    merge = agreed(facts, "merge_size", "spatial_merge_size")
    patch = agreed(facts, "patch_size", "patch_size")
    steps = [
        ("decode_image", "DecodeImage", {"color_space": "RGB"}),
        ("convert_to_rgb", "ConvertRGB", None),
        (
            "resize",
            "Resize",
            {
                "width": side,  # with smart_resize, required by the parser but ignored
                "height": side,
                "smart_resize": int(facts.grid is None),
                "min_pixels": least,
                "max_pixels": most,
                "patch_size": patch,
                "merge_size": merge,
            },
        ),
        ("rescale", "Rescale", {"rescale_factor": p.number("rescale_factor", 1e-9, 1, 1 / 255)}),
        (
            "normalize",
            "Normalize",
            {
                "mean": p.numbers("image_mean", -256, 256, 3),
                "std": p.numbers("image_std", 1e-6, 256, 3),
                "qwen3_vl": 1,
            },
        ),
        (
            "patch_image",
            "PatchImage",
            {
                "patch_size": patch,
                "temporal_patch_size": agreed(facts, "temporal_patch_size", "temporal_patch_size"),
                "merge_size": merge,
            },
        ),
    ]
    transforms = []
    for name, kind, attributes in steps:
        operation: dict[str, Any] = {"name": name, "type": kind}
        if attributes is not None:
            operation["attrs"] = attributes
        transforms.append({"operation": operation})
    config = {"processor": {"name": "qwen3_vl_image_processor", "transforms": transforms}}
    return config if facts.video is None else {**config, KEY: facts.video.record()}


def agreed(facts: Facts, name: str, own: str) -> int:
    """A size that preprocessor_config.json may repeat, and config.json has.

    Raises:
        PackageError: the two differ: the processor would make patches that the tower cannot read.
    """
    size = int(facts.vision[own])
    return facts.preprocessor.integer(name, size, size, size)
