"""Numbers in config.json that no model has, or that the shards do not bear out: one quick line."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
from safetensors.numpy import load_file, save_file

from export_min import families, trace
from export_min.checkpoint import Checkpoint
from export_min.sizes import without_ignored
from surgery.base.errors import CheckpointError

NAN = float("nan")
ROPE = ("text_config", "rope_scaling")
SIZES = [0, -1, 7, 10**5, 1 << 31, 1 << 40, 1 << 62, 4.0, 4.5, "4", True, [4], {}]
SIZED = [
    *(("text_config", key) for key in ("num_hidden_layers", "hidden_size", "vocab_size")),
    *(("text_config", key) for key in ("num_attention_heads", "head_dim", "intermediate_size")),
    ("text_config", "num_key_value_heads"),
    *(("vision_config", key) for key in ("depth", "hidden_size", "num_heads", "patch_size")),
    *(("vision_config", key) for key in ("out_hidden_size", "num_position_embeddings")),
    *(("vision_config", key) for key in ("temporal_patch_size", "in_channels")),
    ("vision_config", "intermediate_size"),
]
NUMBERS = [
    *((("text_config", "rms_norm_eps"), value) for value in (NAN, -1, 0, 1, float("inf"), "x", [])),
    *(((*ROPE, "rope_theta"), value) for value in (NAN, -1, 0, "x", float("inf"), [], {})),
    *(
        ((*ROPE, "mrope_section"), value)
        for value in (
            "x",
            [6, 5],
            [6, 5, 6],
            [6, 5, 5, 0],
            [-1, 12, 5],
            [6.0, 5, 5],
            16,
        )
    ),
    *(((*ROPE, "rope_type"), value) for value in ("x", "dynamic", 3, [], {}, "longrope")),
    (ROPE, "x"),
    (("vision_config", "spatial_merge_size"), 0),
    (("vision_config", "deepstack_visual_indexes"), "x"),
    (("vision_config", "deepstack_visual_indexes"), [1 << 40]),
    (("text_config", "max_position_embeddings"), 1 << 62),
    (("text_config", "num_hidden_layers"), None),
    (("model_type",), ["qwen3_vl"]),
    (("model_type",), {}),
    (("text_config",), []),
    (("vision_config",), 3),
    (("num_labels_of_nothing",), 1 << 40),
]


def edit(checkpoint, path, value):
    config = json.loads((checkpoint / "config.json").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (checkpoint / "config.json").write_text(json.dumps(config))


def load(folder):
    """What an export does before it builds a model, and the check of the weights after it."""
    source = Checkpoint(folder, "checkpoint")
    family = families.load(source.model_type)
    config = trace.load_config(source, family)
    return config, trace.checked_weights(source, family, config)


@pytest.mark.parametrize("value", SIZES, ids=repr)
@pytest.mark.parametrize("path", SIZED, ids="-".join)
def test_sizes(checkpoint, path, value):
    edit(checkpoint, path, value)
    with pytest.raises(CheckpointError) as found:
        load(checkpoint)
    line = str(found.value)
    assert "\n" not in line and len(line) < 500
    if isinstance(value, int) and value > 1 << 30 and value is not True:
        assert path[-1] in line  # named before a model is built


@pytest.mark.parametrize(("path", "value"), NUMBERS, ids=lambda v: str(v)[:30])
def test_numbers(checkpoint, path, value):
    edit(checkpoint, path, value)
    with pytest.raises(CheckpointError) as found:
        load(checkpoint)
    assert "\n" not in str(found.value) and len(str(found.value)) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "hub/kernel"),
        ("attn_implementation", "flash_attention_2"),
        ("num_labels", 1 << 40),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("quantization_config", {"quant_method": "fp8"}),
    ],
)
def test_how_to_run_is_not_the_configurations_to_say(checkpoint, key, value):
    for path in ((key,), ("text_config", key), ("vision_config", key)):
        edit(checkpoint, path, value)
    if value == 1 << 40:
        config = without_ignored(json.loads((checkpoint / "config.json").read_text()))
        assert key not in config and key not in config["text_config"]
    config, weights = load(checkpoint)
    assert weights and config._attn_implementation in (None, "sdpa", "eager")


OUTSIDE = ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "", "a\\..\\..\\x", "c:\\x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_stays_in_the_checkpoint(checkpoint, name):
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"outside the checkpoint"):
        _ = Checkpoint(checkpoint, "checkpoint").shards


@pytest.mark.parametrize("name", ["x" * 5000, "missing.safetensors", "."])
def test_a_shard_that_is_not_there(checkpoint, name):
    (checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": name}})
    )
    with pytest.raises(CheckpointError, match="no weights") as found:
        _ = Checkpoint(checkpoint, "checkpoint").shards
    assert len(str(found.value)) < 500


@pytest.fixture
def spread(checkpoint, tmp_path):
    """The demo in two shards of equal names in folders of their own, reached by links."""
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    (checkpoint / "model.safetensors").unlink()
    place = {}
    for i, half in enumerate((names[::2], names[1::2])):
        disk = tmp_path / f"disk{i}" / "deep"
        disk.mkdir(parents=True)
        save_file({name: weights[name] for name in half}, disk / "blob")
        shard = f"part{i}/model.safetensors" if i else "model-1.safetensors"
        (checkpoint / shard).parent.mkdir(exist_ok=True)
        (checkpoint / shard).symlink_to(disk / "blob")
        place |= dict.fromkeys(half, shard)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    return checkpoint, weights


def test_shards_in_several_folders(spread):
    folder, weights = spread
    source = Checkpoint(folder, "checkpoint")
    assert len(source.headers) == len(source.samples) == 2
    for name, weight in source.weights.items():
        tensor = weight.tensor(name)
        assert (source.folder / tensor.location) == weight.file.resolve()
        assert ".." not in tensor.location and not os.path.isabs(tensor.location)
        assert tensor.numpy().tobytes() == weights[name].tobytes()


def test_a_header_length_beyond_the_file(checkpoint):
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    for length in (1 << 63, (1 << 64) - 1, 1 << 40, len(data)):
        data[:8] = struct.pack("<Q", length)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="truncated or corrupt"):
            _ = Checkpoint(checkpoint, "checkpoint").weights


def test_samples_tell_another_training_apart(checkpoint, tmp_path):
    from surgery.base.shards import header_digest, sample_digest

    path, other = checkpoint / "model.safetensors", tmp_path / "other.safetensors"
    shutil.copyfile(path, other)
    assert sample_digest(path) == sample_digest(other)
    data = bytearray(other.read_bytes())
    half = len(data) // 2
    data[half : half + len(data) // 16] = os.urandom(len(data) // 16)
    other.write_bytes(data)
    assert header_digest(path) == header_digest(other)
    assert sample_digest(path) != sample_digest(other)
