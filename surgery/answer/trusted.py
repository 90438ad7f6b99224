"""What must hold of a package's configurations before the runtime reads them.

The runtime trusts a package: it loads the library that a configuration names, divides by the sizes
that it finds, and makes caches of any length. A package may come from anyone, so both files are
read here first, and refused where a value is of another kind or out of range.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgery.base.errors import PackageError
from surgery.base.files import Fields, read_json, shown
from surgery.base.videos import KEY, Settings

PARTS = ("vision", "embedding", "decoder")
LARGEST = (1 << 31) - 1
MOST_LAYERS = 1024
MOST_POSITIONS = 1 << 22
MOST_PIXELS = 1 << 30
MOST_ENDS = 64
LIBRARIES = (".so", ".dll", ".dylib", ".pyd")
"""Ends of file names that are programs."""

SIZES: tuple[tuple[str, tuple[str, ...], int, int], ...] = (
    ("", ("context_length",), 2, MOST_POSITIONS),
    ("", ("vocab_size",), 1, LARGEST),
    ("decoder", ("head_size", "hidden_size"), 1, 1 << 20),
    ("decoder", ("num_attention_heads", "num_key_value_heads"), 1, 1 << 16),
    ("decoder", ("num_hidden_layers",), 1, MOST_LAYERS),
    ("vision", ("spatial_merge_size", "patch_size"), 1, 1 << 10),
)
"""Integers of "model" in genai_config.json: the object inside it, the keys, least and most."""
TOKENS = ("bos_token_id", "pad_token_id")
PICTURE_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id")
NAMES = {
    "vision": (("pixel_values", "image_grid_thw"), ("image_features",)),
    "embedding": (("input_ids", "image_features"), ("inputs_embeds",)),
    "decoder": (
        ("inputs_embeds", "attention_mask", "position_ids", "past_key_names", "past_value_names"),
        ("logits", "present_key_names", "present_value_names"),
    ),
}
"""Inputs and outputs of each graph whose names this program uses."""
TEXT_INPUTS = ("input_ids", "attention_mask", "past_key_names", "past_value_names")
"""Inputs of a decoder that takes tokens, whose package has no other graph."""


def read_package(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a package.

    Raises:
        PackageError: not there, or no JSON object.
    """
    if not folder.is_dir():
        raise PackageError(f"{folder}: no such directory.")
    missing = f"{folder}: no package here ({name} is missing)."
    return read_json(folder / name, PackageError, missing, broken="cannot be read")


def takes_pictures(config: dict[str, Any]) -> bool:
    """Whether a package is one with pictures; one of a language model has its decoder alone."""
    model = config.get("model")
    return not isinstance(model, dict) or "vision" in model or "embedding" in model


def parts_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The graphs that a package has, by their names in genai_config.json."""
    return PARTS if takes_pictures(config) else ("decoder",)


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Check genai_config.json.

    Args:
        folder: the package, for messages.
        config: the file's object.

    Raises:
        PackageError: a value is missing, of another kind or out of range, or names a library.
    """
    whole = Fields(folder / "genai_config.json", config, PackageError)
    for key, value in programs(config):
        raise PackageError(
            f"{whole.file}: {key} is {shown(value)}: a package may not bring code that is loaded."
        )
    model = whole.inner("model")
    model.text("type")
    pictures = takes_pictures(config)
    for part, keys, least, most in SIZES:
        if part == "vision" and not pictures:
            continue
        where = model.inner(part) if part else model
        for key in keys:
            where.integer(key, least, most)
    for key in (*TOKENS, *PICTURE_TOKENS) if pictures else TOKENS:
        model.integer(key, 0, LARGEST)
    model.integers("eos_token_id", 0, LARGEST, MOST_ENDS)
    if pictures:
        for part in PARTS:
            check_part(model.inner(part), *NAMES[part])
        model.inner("vision").filename("config_filename", "processor_config.json")
    else:
        check_part(model.inner("decoder"), TEXT_INPUTS, NAMES["decoder"][1])
    check_search(whole.inner("search"))


def check_part(section: Fields, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Check what genai_config.json says of one graph.

    Args:
        section: its object.
        inputs: those that must be named.
        outputs: those that must be named.

    Raises:
        PackageError: they are not, or a value is of another kind.
    """
    section.filename("filename")
    options = section.inner("session_options") if "session_options" in section else None
    if options is not None and "provider_options" in options:
        for entry in options.objects("provider_options", longest=8):
            for name in entry.values:
                entry.inner(name)
    for kind, needed in (("inputs", inputs), ("outputs", outputs)):
        names = section.inner(kind)
        for key in dict.fromkeys((*needed, *names.values)):
            text = names.text(key)
            if key.endswith("_names") and (text.count("%") != 1 or "%d" not in text):
                raise names.fault(key, "a name with one %d")


def check_search(search: Fields) -> None:
    """Check how answers are searched for."""
    search.integer("max_length", 1, MOST_POSITIONS)
    search.integer("min_length", 0, MOST_POSITIONS, 0)
    search.integer("num_beams", 1, 1, 1)
    search.integer("num_return_sequences", 1, 1, 1)
    search.integer("batch_size", 1, 1, 1)
    search.integer("top_k", 0, LARGEST, 0)
    search.integer("random_seed", -1, LARGEST, -1)
    search.integer("no_repeat_ngram_size", 0, MOST_POSITIONS, 0)
    search.number("top_p", 0, 1, 1.0)
    search.number("temperature", 0, 1000, 1.0)
    search.number("repetition_penalty", 0, 100, 1.0)
    search.number("length_penalty", -100, 100, 1.0)
    for key in ("do_sample", "early_stopping", "past_present_share_buffer"):
        search.flag(key, False)


def programs(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values that name a library to load, by key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if "library" in str(name).lower():
                yield path, inner
            yield from programs(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from programs(inner, key)
    elif isinstance(value, str):
        plain = value.lower().strip()
        if plain.endswith(LIBRARIES) or ".so." in plain:
            yield key, value


def check_processor(file: Path, processor: dict[str, Any]) -> None:
    """Check the steps of processor_config.json.

    Args:
        file: the file, for messages.
        processor: its object.

    Raises:
        PackageError: a step is missing, or a value is of another kind or out of range.
    """
    whole = Fields(file, processor, PackageError)
    found: dict[str, Fields] = {}
    for transform in whole.inner("processor").objects("transforms", longest=32):
        operation = transform.inner("operation")
        name = operation.text("type")
        found[name] = operation.inner("attrs") if "attrs" in operation else operation
    for name in ("DecodeImage", "Resize", "Rescale", "Normalize", "PatchImage"):
        if name not in found:
            raise PackageError(f"{file}: the step {name} is missing.")
    resize, patch = found["Resize"], found["PatchImage"]
    resize.integer("smart_resize", 0, 1, 0)
    for key in ("width", "height"):
        resize.integer(key, 1, 1 << 15)
    least = resize.integer("min_pixels", 1, MOST_PIXELS)
    resize.integer("max_pixels", least, MOST_PIXELS)
    for attributes in (resize, patch):
        for key in ("patch_size", "merge_size"):
            attributes.integer(key, 1, 1 << 10)
    patch.integer("temporal_patch_size", 1, 1 << 10)
    found["Rescale"].number("rescale_factor", 1e-9, 256)
    found["Normalize"].numbers("mean", -256, 256, 3)
    found["Normalize"].numbers("std", 1e-6, 256, 3)
    found["Normalize"].integer("qwen3_vl", 0, 1, 0)
    if KEY in whole:
        Settings.of(whole.inner(KEY))
