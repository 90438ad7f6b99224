"""Checkpoints that cannot be used: one line says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from export_min.__main__ import main
from export_min.families import FAMILIES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WEIGHTS = "model.safetensors"
NORM = "model.language_model.norm.weight"


@pytest.fixture
def export(refused, checkpoint, tmp_path):
    """Export the damaged checkpoint; returns the line."""
    return lambda: refused(main, "-i", checkpoint, "-o", tmp_path / "raw")


def edit(checkpoint, name, change):
    path = checkpoint / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def rewrite(checkpoint, change):
    """Change the weights."""
    weights = load_file(checkpoint / WEIGHTS)
    change(weights)
    save_file(weights, checkpoint / WEIGHTS)


def test_no_such_path(refused, tmp_path):
    line = refused(main, "-i", tmp_path / "missing", "-o", tmp_path / "raw")
    assert "no such directory" in line


def test_a_hub_id_without_the_hub(tmp_path):
    command = [sys.executable, "-m", "export_min", "-i", "someone/something", "-o", "raw"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": ROOT,
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "someone/something: no such directory, and the hub cannot be reached" in line
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("found", ["llama", "qwen2_5_omni", "qwen3", None])
def test_another_architecture_is_named(export, checkpoint, found):
    edit(checkpoint, "config.json", lambda config: config.update(model_type=found))
    line = export()
    assert f"model_type is {found!r}, needs to be one of " in line
    assert all(f"{kind!r} ({name})" in line for kind, name in FAMILIES.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json is missing"),
        ("", "not valid JSON"),
        ('{"model_type": ', "not valid JSON"),
        ("[]", "holds a list, needs to hold an object"),
        ('{"model_type": "qwen3_vl"}', "no 'text_config' object"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_a_broken_configuration(export, checkpoint, text, message):
    path = checkpoint / "config.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert message in export()


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "hidden_size", "wide"),
        ("text_config", "hidden_size", 120),
        ("text_config", "num_hidden_layers", 5),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "num_key_value_heads", 4),
        ("text_config", "hidden_act", "unheard_of"),
        ("vision_config", "depth", -1),
        ("vision_config", "num_heads", 3),
        ("vision_config", "patch_size", 0),
        ("vision_config", "deepstack_visual_indexes", [0, 1]),
        ("vision_config", "deepstack_visual_indexes", []),
        ("vision_config", "deepstack_visual_indexes", [0, 2, 9]),
    ],
)
def test_a_configuration_that_does_not_hold_together(export, checkpoint, part, key, value):
    edit(checkpoint, "config.json", lambda config: config[part].update({key: value}))
    line = export()
    assert "config.json" in line or "missing from the shards" in line


def test_a_missing_shard(export, checkpoint):
    (checkpoint / WEIGHTS).unlink()
    assert "no weights: model.safetensors missing" in export()


def test_a_shard_that_only_the_index_has(export, checkpoint):
    index = {"weight_map": {NORM: WEIGHTS, "lm_head.weight": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors missing" in export()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index(export, checkpoint, text):
    (checkpoint / "model.safetensors.index.json").write_text(text)
    assert str(checkpoint) in export()


@pytest.mark.parametrize("keep", [0, 5, 8, 1000, 100_000, -1])
def test_a_truncated_shard(export, checkpoint, keep):
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{WEIGHTS}: truncated or corrupt" in export()


@pytest.mark.parametrize("place", [0, 8, 40])
def test_a_corrupt_header(export, checkpoint, place):
    path = checkpoint / WEIGHTS
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert f"{WEIGHTS}: truncated or corrupt" in export()


def test_weights_in_place_of_a_file(export, checkpoint):
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / WEIGHTS).mkdir()
    assert "no weights" in export()


def test_a_missing_tensor(export, checkpoint):
    rewrite(checkpoint, lambda weights: weights.pop(NORM))
    assert f"{NORM}: missing from the shards" in export()


def test_an_extra_tensor(export, checkpoint):
    rewrite(checkpoint, lambda weights: weights.update(extra=torch.zeros(2)))
    assert "extra: not expected by config.json" in export()


def test_a_tensor_of_another_shape(export, checkpoint):
    rewrite(checkpoint, lambda weights: weights.update({NORM: torch.ones(64)}))
    assert f"{NORM} has shape [64], config.json requires [128]" in export()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_a_tensor_of_another_dtype(export, checkpoint, dtype):
    rewrite(checkpoint, lambda weights: weights.update({NORM: torch.ones(128).to(dtype)}))
    assert f"{NORM} is " in export()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_missing_tokenizer_or_processor(export, checkpoint, name):
    (checkpoint / name).unlink()
    assert f"{name} is missing" in export()


@pytest.mark.parametrize("command", [(), ("check",)])
def test_checking_says_the_same(refused, checkpoint, tmp_path, command):
    rewrite(checkpoint, lambda weights: weights.pop(NORM))
    line = refused(main, *command, "-i", checkpoint, "-o", tmp_path / "out")
    assert f"{NORM}: missing from the shards" in line


def mixture(config):
    """The demo's configuration as that of a mixture of experts."""
    config["model_type"] = "qwen3_vl_moe"
    config["text_config"] |= {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("num_experts", 0, "num_experts is 0, needs to be positive"),
    ("num_experts_per_tok", 5, "num_experts_per_tok is 5, of 4 experts"),
    ("decoder_sparse_step", 0, "decoder_sparse_step is 0"),
    ("moe_intermediate_size", 0, "moe_intermediate_size is 0"),
])  # fmt: skip
def test_no_such_mixture(export, checkpoint, key, value, reason):
    edit(checkpoint, "config.json", mixture)
    edit(checkpoint, "config.json", lambda config: config["text_config"].update({key: value}))
    assert reason in export()


def test_experts_one_by_one(export, checkpoint):
    """Not how this family is published, and transformers does not read it either."""

    def split(weights):
        for layer in range(4):
            stem = f"model.language_model.layers.{layer}.mlp"
            for part in ("gate", "up", "down"):
                weights[f"{stem}.experts.0.{part}_proj.weight"] = weights.pop(
                    f"{stem}.{part}_proj.weight"
                )

    edit(checkpoint, "config.json", mixture)
    rewrite(checkpoint, split)
    assert "mlp.experts.down_proj and 11 more: missing from the shards" in export()


def test_experts_of_another_size(export, checkpoint):
    def wrong(weights):
        for layer in range(4):
            stem = f"model.language_model.layers.{layer}.mlp"
            for part in ("gate", "up", "down"):
                del weights[f"{stem}.{part}_proj.weight"]
            weights[f"{stem}.gate.weight"] = torch.zeros(4, 128)
            weights[f"{stem}.experts.gate_up_proj"] = torch.zeros(4, 128, 128)
            weights[f"{stem}.experts.down_proj"] = torch.zeros(4, 60, 128)

    edit(checkpoint, "config.json", mixture)
    rewrite(checkpoint, wrong)
    assert "down_proj has shape [4, 60, 128], config.json requires [4, 128, 64]" in export()


@pytest.mark.parametrize("found", ["x", "\x1b[31mred", "a\nerror: all is well"])
def test_a_rope_type_is_told_in_one_line(checkpoint, tmp_path, found):
    """transformers would log it as it is, line breaks and codes for the terminal included."""
    edit(
        checkpoint,
        "config.json",
        lambda config: config["text_config"]["rope_scaling"].update(rope_type=found),
    )
    command = [sys.executable, "-m", "export_min", "-i", str(checkpoint), "-o", "raw"]
    environment = os.environ | {"PYTHONPATH": ROOT}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "rope_type is" in line
    assert line.isprintable() and not (tmp_path / "raw").exists()
