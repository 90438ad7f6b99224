"""Write processor_config.json: the checkpoint's image processor for onnxruntime-extensions."""

from __future__ import annotations

from typing import Any

from surgery.base.errors import PackageError
from surgery.engine.facts import Facts


def processor_config(facts: Facts) -> dict[str, Any]:
    """Return the transforms from a picture file to `pixel_values` and `image_grid_thw`.

    Pictures keep their aspect ratio, unless the package is built for one size: then every picture
    is stretched to that square.

    The numbers come from preprocessor_config.json of the checkpoint. `ConvertRGB` and the flag
    `qwen3_vl` of `Normalize` both swap the red and blue channels, so a configuration needs both or
    neither.

    Raises:
        PackageError: the checkpoint turns a step off that the runtime always runs.
    """
    p = facts.preprocessor
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if p.get(name) is False]
    if off:
        raise PackageError(
            f"preprocessor_config.json: {off[0]} is false, needs to be true. "
            "The runtime always runs this step."
        )
    least, most = facts.pixels
    side = facts.options.image_size or 384
    merge = int(p.get("merge_size", facts.vision["spatial_merge_size"]))
    patch = int(p.get("patch_size", facts.vision["patch_size"]))
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
        ("rescale", "Rescale", {"rescale_factor": float(p.get("rescale_factor", 1 / 255))}),
        (
            "normalize",
            "Normalize",
            {
                "mean": [float(x) for x in p["image_mean"]],
                "std": [float(x) for x in p["image_std"]],
                "qwen3_vl": 1,
            },
        ),
        (
            "patch_image",
            "PatchImage",
            {
                "patch_size": patch,
                "temporal_patch_size": int(
                    p.get("temporal_patch_size", facts.vision["temporal_patch_size"])
                ),
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
    return {"processor": {"name": "qwen3_vl_image_processor", "transforms": transforms}}
