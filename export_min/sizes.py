"""Sizes in config.json, compared with the shards before anything is built from them.

A configuration may name any size, and transformers makes a list or a table of that length before
it looks at a weight. The headers of the shards say how many layers there are and how wide, so a
size that they do not bear out is refused while it is still a number. What no header shows is held
to a range that no model reaches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export_min.checkpoint import Checkpoint
from surgery.base.errors import CheckpointError
from surgery.base.files import is_integer, is_number, shown

LARGEST = (1 << 31) - 1
"""Largest integer that config.json may hold."""
IGNORED = (
    *("_attn_implementation", "attn_implementation", "_attn_implementation_internal"),
    *("_experts_implementation", "experts_implementation", "_experts_implementation_internal"),
    *("auto_map", "num_labels", "id2label", "label2id", "quantization_config", "torchscript"),
)
"""Keys that say how transformers shall run a model, or for another task: none shapes a graph, and
some would have it fetch code or build a list of any length."""

Shapes = Mapping[str, Sequence[int]]

LAYERS = r"(?:model\.language_model|language_model\.model|model)\.layers\.(\d+)\."
BLOCKS = r"(?:model\.)?visual\.blocks\.(\d+)\."
TABLE = r"(?:model\.language_model|language_model\.model|model)\.embed_tokens\.weight"
HEAD_NORM = r".*\.layers\.\d+\.self_attn\.q_norm\.weight"
POSITIONS = r"(?:model\.)?visual\.pos_embed\.weight"
PATCHES = r"(?:model\.)?visual\.patch_embed\.proj\.weight"


def without_ignored(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration and its parts without the keys of `IGNORED`."""
    return {
        key: without_ignored(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in IGNORED
    }


def check_sizes(checkpoint: Checkpoint) -> None:
    """Compare config.json with the headers of the shards.

    Raises:
        CheckpointError: a number that no model has, or a size that the shards do not bear out; the
            message names the key, what it is and what the shards hold.
    """
    config = without_ignored(checkpoint.config)
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    for key, problem in (*absurd(config), *unbacked(config, shapes)):
        raise CheckpointError(f"{checkpoint.source}: config.json: {key} {problem}.")


def unstated(config: Mapping[str, Any]) -> Iterator[str]:
    """What config.json lacks although neither the shards nor anything else shows it.

    transformers would take its family's default without a word, and the graphs would be wrong.
    """
    text, tower = part(config, "text_config"), config.get("vision_config")
    if not isinstance(tower, dict):
        yield "no 'vision_config' object"
        return
    for key in ("num_attention_heads", "rms_norm_eps"):
        if key not in text:
            yield f"no {key!r} for the decoder"
    if "num_heads" not in tower:
        yield "no 'num_heads' in 'vision_config'"
    ropes = [
        place.get(key) for place in (text, config) for key in ("rope_parameters", "rope_scaling")
    ]
    if not any(
        "rope_theta" in place for place in (text, config, *ropes) if isinstance(place, dict)
    ):
        yield "no 'rope_theta', the base of the rotary frequencies"


def absurd(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Integers that no model has, by key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from absurd(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from absurd(inner, key)
    elif is_integer(value) and abs(value) > LARGEST:
        yield key, f"is {shown(value)}, more than any model has"


def unbacked(config: Mapping[str, Any], shapes: Shapes) -> Iterator[tuple[str, str]]:
    """Sizes that the shards contradict, by key, and what they hold."""
    text, tower = part(config, "text_config"), part(config, "vision_config")
    for keys, where, count, what in (
        (("num_hidden_layers",), text, indexed(LAYERS, shapes), "layers"),
        (("depth",), tower, indexed(BLOCKS, shapes), "vision blocks"),
        (("vocab_size",), text, dimension(TABLE, shapes, 0), "rows in the embedding table"),
        (("hidden_size",), text, dimension(TABLE, shapes, 1), "columns in the embedding table"),
        (("head_dim",), text, dimension(HEAD_NORM, shapes, 0), "weights in the norm of a head"),
        (
            ("num_position_embeddings",),
            tower,
            dimension(POSITIONS, shapes, 0),
            "rows in the table of positions",
        ),
        (("in_channels", "in_chans"), tower, dimension(PATCHES, shapes, 1), "channels"),
        (("temporal_patch_size",), tower, dimension(PATCHES, shapes, 2), "frames in a patch"),
        (("patch_size",), tower, dimension(PATCHES, shapes, 3), "pixels along a patch"),
    ):
        for key in keys:
            value = where.get(key)
            if is_integer(value) and count is not None and value != count:
                name = f"text_config.{key}" if where is text else f"vision_config.{key}"
                yield name, f"is {value:,}, the shards hold {count:,} {what}"
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for where, prefix in ((text, "text_config"), (tower, "vision_config")):
        for key in (
            *("intermediate_size", "num_attention_heads", "num_key_value_heads", "num_heads"),
            *("hidden_size", "embed_dim", "out_hidden_size", "head_dim", "num_experts"),
            *("moe_intermediate_size", "num_experts_per_tok", "spatial_merge_size"),
        ):
            value = where.get(key)
            if is_integer(value) and value > largest:
                yield (
                    f"{prefix}.{key}",
                    f"is {value:,}, no weight in the shards is longer than {largest:,}",
                )


def part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of the configuration; Qwen2-VL was first published without a text part."""
    found = config.get(name, config if name == "text_config" else {})
    return found if isinstance(found, dict) else {}


def indexed(pattern: str, shapes: Shapes) -> int | None:
    """How many layers the names of weights number, or None if they number none."""
    numbers = {int(found[1]) for name in shapes if (found := re.match(pattern, name)) is not None}
    return len(numbers) or None


def dimension(pattern: str, shapes: Shapes, axis: int) -> int | None:
    """A dimension of the first weight whose name fits, or None."""
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name) and len(shape) > axis:
            return int(shape[axis])
    return None


def numbers(config: Any) -> Iterator[tuple[bool, str]]:
    """What has to hold of the numbers that transformers resolved, and what to say if it does not.

    Args:
        config: the configuration of transformers, text and vision in one.
    """
    text = config.text_config
    eps = text.rms_norm_eps
    yield is_number(eps) and 0 < eps < 1, f"text_config.rms_norm_eps is {shown(eps)}"
    rope = text.rope_parameters
    theta = rope.get("rope_theta")
    yield is_number(theta) and 0 < theta < 1e12, f"rope_theta is {shown(theta)}"
    for key in ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale"):
        value = rope.get(key)
        yield value is None or (is_number(value) and value > 0), f"{key} of rope is {shown(value)}"
    width, heads = getattr(text, "head_dim", None), text.num_attention_heads
    yield (
        width is not None or text.hidden_size % heads == 0,
        f"hidden_size {text.hidden_size} is not a multiple of num_attention_heads {heads}",
    )
    width = width or text.hidden_size // heads
    section = rope.get("mrope_section")
    if section is not None:
        whole = isinstance(section, list | tuple) and len(section) == 3
        fits = whole and all(is_integer(n) and n >= 0 for n in section)
        yield (
            fits and sum(section) == width // 2,
            f"mrope_section is {shown(section)}, must be three integers that add up to half of "
            f"the head width {width}",
        )
    most = text.max_position_embeddings
    yield is_integer(most) and most > 0, f"max_position_embeddings is {shown(most)}"
