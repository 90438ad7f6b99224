"""`python -m surgery verify` passes what is sound and names what is broken, a line a fault."""

from __future__ import annotations

import json
import re
import shutil

import onnx
import onnx_ir as ir
import pytest

from surgery.__main__ import main
from surgery.verify.digests import check_digests
from surgery.verify.graphs import check_graphs, in_float
from surgery.verify.opened import Opened


def verify(capsys, *words):
    code = main(["verify", *map(str, words)])
    return code, capsys.readouterr().out


def test_every_configuration_is_sound(case, capsys):
    code, out = verify(capsys, case.fp32, "--checkpoint", case.checkpoint)
    assert code == 0, out
    assert out.count("logits,") == 3 and "FAILED" not in out


def test_an_int4_package_is_held_to_its_unpacked_weights(demo, capsys):
    code, out = verify(capsys, demo.int4, "--checkpoint", "demo")
    assert code == 0, out


def test_products_are_computed_in_float(demo):
    """What is compared is the package's decoder but for the rounding of activations, so that a
    sound one is far within the tolerance, on any processor."""
    path = demo.int4 / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    changed = 0
    for node in model.graph.node:
        for attribute in [a for a in node.attribute if a.name == "accuracy_level"]:
            assert attribute.i == 4
            node.attribute.remove(attribute)
            changed += 1
    assert changed > 20 and onnx.ModelProto.FromString(in_float(path)) == model
    found = {finding.what: finding for finding in check_graphs(Opened(demo.int4))}
    for what in ("decoder, with its cache", "decoder, batch of 3"):
        assert not found[what].problem
        difference, scale = re.findall(r"[\d.]+(?:e[+-]\d+)?", found[what].note)
        assert float(difference) < 1e-5 * float(scale)


def test_another_checkpoint_is_told_apart(demo, cases, capsys):
    code, out = verify(capsys, demo.fp32, "--checkpoint", cases("half").checkpoint)
    assert code == 1 and "PyTorch has 640" in out


def test_unpacked_weights_that_another_checkpoint_has_not(demo, cases, capsys):
    assert main(["verify", str(demo.int4), "--checkpoint", str(cases("half").checkpoint)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot replace a weight" in line and "that the package was made from?" in line


def edit(name, *path):
    """Damage: another value in a JSON file."""

    def damage(folder, value):
        file = folder / name
        config = json.loads(file.read_text())
        part = config
        for key in path[:-1]:
            part = part[key]
        if value is None:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        file.write_text(json.dumps(config))

    return damage


def remove(folder, name):
    (folder / name).unlink()


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])


def swap(folder, names):
    one, other = (folder / name for name in names)
    spare = folder / "spare"
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def zero(folder, name):
    """A data file of the right size that holds nothing."""
    path = folder / name
    path.write_bytes(bytes(path.stat().st_size))


def nan_norm(folder, name):
    """A weight that is not a number."""
    model = ir.load(folder / name)
    value = next(v for k, v in model.graph.initializers.items() if k.endswith("norm.weight"))
    numbers = value.const_value.numpy().copy()
    numbers[0] = float("nan")
    value.const_value = ir.tensor(numbers, name=value.name)
    ir.save(model, folder / name)


GENAI, PROCESSOR = "genai_config.json", "processor_config.json"
RESIZE = ("processor", "transforms", 2, "operation", "attrs")
DAMAGE = [
    (remove, "model.onnx.data", "model.onnx.data", "is missing"),
    (remove, "qwen3vl-vision.onnx", "qwen3vl-vision.onnx", "is missing"),
    (remove, "tokenizer.json", "tokenizer.json", "is missing"),
    (remove, PROCESSOR, PROCESSOR, "is missing"),
    (cut, "qwen3vl-vision.onnx.data", "qwen3vl-vision.onnx", "ends at byte"),
    (cut, "model.onnx", "model.onnx", "no ONNX graph"),
    (
        swap,
        ("model.onnx.data", "qwen3vl-vision.onnx.data"),
        "model.onnx|qwen3vl-vision.onnx",
        "ends at byte",
    ),
    (
        swap,
        ("model.onnx", "qwen3vl-vision.onnx"),
        "inputs and outputs",
        "the vision graph has no input",
    ),
    (zero, "tokenizer.json", "tokenizer.json", "cannot be read"),
    (nan_norm, "model.onnx", "decoder", "not finite"),
    (edit(GENAI, "model", "decoder", "hidden_size"), 64, "decoder.hidden_size", "is 64"),
    (edit(GENAI, "model", "decoder", "num_key_value_heads"), 6, "num_key_value_heads", "is 6"),
    (edit(GENAI, "model", "decoder", "head_size"), 16, "decoder.head_size", "is 16"),
    (edit(GENAI, "model", "decoder", "num_hidden_layers"), 3, "inputs and outputs", "key_values.3"),
    (edit(GENAI, "model", "vocab_size"), 600, "vocab_size", "is 600"),
    (edit(GENAI, "model", "image_token_id"), 1, "picture tokens", "image_token_id is 1"),
    (edit(GENAI, "model", "eos_token_id"), [9999], "token ids", "eos_token_id 9999"),
    (edit(GENAI, "model", "context_length"), 99999, "context_length", "rotary table has 4096 rows"),
    (edit(GENAI, "search", "max_length"), 9999, "search.max_length", "at most context_length 4096"),
    (edit(GENAI, "model", "decoder", "filename"), None, GENAI, "decoder.filename is missing"),
    (
        edit(GENAI, "model", "vision", "inputs", "image_grid_thw"),
        None,
        GENAI,
        "image_grid_thw is missing",
    ),
    (edit(PROCESSOR, *RESIZE, "patch_size"), 14, "Resize.patch_size", "is 14"),
    (edit(PROCESSOR, "processor", "transforms"), [], PROCESSOR, "is missing"),
]


@pytest.mark.parametrize(
    ("damage", "value", "what", "problem"), DAMAGE, ids=[f"{d[2]}-{d[3]}" for d in DAMAGE]
)
def test_a_broken_package_is_named(demo, tmp_path, capsys, damage, value, what, problem):
    package = tmp_path / "package"
    shutil.copytree(demo.fp32, package)
    damage(package, value)
    code, out = verify(capsys, package)
    failed = [line for line in out.splitlines() if "FAILED" in line]
    assert code == 1 and failed
    assert any(problem in line and any(w in line for w in what.split("|")) for line in failed), out
    assert len(failed) <= 2, out


def test_no_package_is_an_input_error(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "no package here" in capsys.readouterr().err


@pytest.fixture(scope="module")
def copy(demo, tmp_path_factory):
    """A copy of the INT4 package, to be damaged and mended."""
    return shutil.copytree(demo.int4, tmp_path_factory.mktemp("digests") / "package")


def test_one_flipped_byte_of_any_file_is_found(copy):
    """Data files, graphs, configurations, tokenizer, template, model card: one bit is enough."""
    files = [path for path in sorted(copy.iterdir()) if path.name != "surgery.json"]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        (found,) = check_digests(copy)
        assert found.what == path.name and found.problem
        path.write_bytes(data)
    (found,) = check_digests(copy)
    assert not found.problem


def test_files_that_are_gone_empty_or_new_are_found(copy, capsys):
    template = copy / "chat_template.jinja"
    data = template.read_bytes()
    template.write_bytes(b"")
    (copy / "extra.bin").write_bytes(b"x")
    assert [f.what for f in check_digests(copy)] == ["chat_template.jinja", "extra.bin"]
    (copy / "extra.bin").unlink()
    template.unlink()
    assert [f.what for f in check_digests(copy)] == ["chat_template.jinja"]
    template.write_bytes(data)
    (copy / "README.md").write_text("another card")
    code, out = verify(capsys, copy)
    assert code == 1 and "README.md" in out
    assert verify(capsys, copy, "--no-digests")[0] == 0
