"""Graphs of another exporter, calibrated on inputs of their user."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from optimum import KEPT

from surgery.__main__ import main
from surgery.jobs import calibrate_graph

NAMES = "Llama", "Gemma", "SigLIP", "ViT"
"""Decoders with and without position ids, a tower with a pooling head, and one without."""
BITS = "4.7"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Results of earlier runs lie in a folder of the test."""
    kept = tmp_path / "kept"
    monkeypatch.setattr(calibrate_graph.calibrated, "__defaults__", (kept,))
    return kept


def subject(name):
    return next(kept for kept in KEPT if kept.name.startswith(name))


def examples(kept, count, seed):
    """Tokens of a small vocabulary, or pictures of few colours."""
    rng = np.random.default_rng(seed)
    if kept.heads is None:
        rows = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
        return {"pixel_values": np.kron(rows, np.ones((1, 1, 8, 8), np.float32))}
    ids = rng.integers(3, 40, (count, 24))
    found = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    positions = np.broadcast_to(np.arange(24), ids.shape)
    return found | ({} if kept.name.startswith("Gemma") else {"position_ids": positions})


def applied(source, out, kept, *words):
    words = (*("-t", "int4", "--bits", BITS, "--recipe", kept.recipe, "--max-length", "64"), *words)
    return main(["apply", "-i", str(source), "-o", str(out), *words])


def outputs(path, feeds):
    """The first output; caches are empty."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = len(next(iter(feeds.values())))
    for port in session.get_inputs():
        if port.name.startswith("past"):
            _, heads, _, width = port.shape
            feeds = feeds | {port.name: np.zeros((rows, heads, 0, width), np.float32)}
    return session.run(None, feeds)[0][:, -1]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_nearer_than_rounded_ones(name, tmp_path, folder, capsys):
    """On inputs that the calibration did not see, at the same bits."""
    kept = subject(name)
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "model.onnx"
    kept.write(source)
    np.savez(tmp_path / "examples.npz", **examples(kept, 40, 1))
    own = "--preset", "balanced", "--calibrate", str(tmp_path / "examples.npz")
    assert applied(source, tmp_path / "rounded", kept) == 0
    assert applied(source, tmp_path / "calibrated", kept, *own) == 0
    fresh = examples(kept, 12, 2)
    wanted = outputs(source, fresh)
    off = [
        np.linalg.norm(outputs(tmp_path / f"{how}/model.onnx", fresh) - wanted)
        for how in ("calibrated", "rounded")
    ]
    print(
        f"{kept.name}: {off[0] / np.linalg.norm(wanted):.4f}, {off[0] / off[1]:.2f} of rounding's"
    )
    assert 0 < off[0] < 0.75 * off[1]
    told = json.loads((tmp_path / "calibrated" / "quantization.json").read_text())["model.onnx"]
    assert told["measured"] and all(row["error"] > 0 for row in told["weights"])
    assert told["bits"] <= float(BITS)
    capsys.readouterr()
    assert applied(source, tmp_path / "again", kept, *own) == 0
    assert f"calibration taken from {folder}" in capsys.readouterr().err.replace("\n", "")
    first, again = (tmp_path / f"{n}/model.onnx.data" for n in ("calibrated", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_folder_of_files(tmp_path):
    """Rows of unlike length, a file each."""
    kept = subject("Llama")
    kept.write(tmp_path / "model.onnx")
    (tmp_path / "examples").mkdir()
    for length in (5, 9, 24):
        arrays = {name: array[:, :length] for name, array in examples(kept, 6, length).items()}
        np.savez(tmp_path / "examples" / f"{length}.npz", **arrays)
    own = "--preset", "balanced", "--calibrate", str(tmp_path / "examples")
    assert applied(tmp_path / "model.onnx", tmp_path / "out", kept, *own) == 0


def padded(arrays, more):
    """Examples with padding behind them: tokens as they come, which a mask calls padding."""
    rng = np.random.default_rng(0)
    count = len(arrays["input_ids"])
    behind = {"input_ids": rng.integers(3, 40, (count, more))}
    behind["position_ids"] = np.zeros((count, more), np.int64)
    behind["attention_mask"] = np.zeros((count, more), np.int64)
    return {name: np.concatenate([x, behind[name]], axis=1) for name, x in arrays.items()}


def test_padding_counts_for_nothing(tmp_path):
    """Every figure is that of the examples without padding, and most codes are the same."""
    kept = subject("Llama")
    kept.write(tmp_path / "model.onnx")
    plain = examples(kept, 24, 1)
    found = {}
    for name, arrays in {"plain": plain, "padded": padded(plain, 9)}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        own = "--preset", "balanced", "--calibrate", str(tmp_path / f"{name}.npz")
        assert applied(tmp_path / "model.onnx", tmp_path / name, kept, *own) == 0
        plan = json.loads((tmp_path / name / "quantization.json").read_text())["model.onnx"]
        found[name] = {row["name"]: (row["error"], row["loss"]) for row in plan["weights"]}
    assert found["plain"].keys() == found["padded"].keys()
    for name, figures in found["plain"].items():
        np.testing.assert_allclose(found["padded"][name], figures, rtol=2e-2)


BAD = {
    "nothing": (lambda a: None, "no .npz file"),
    "no arrays": (lambda a: b"PK", "cannot be read as arrays of NumPy"),
    "objects": (lambda a: a | {"input_ids": np.array([{}])}, "cannot be read as arrays of NumPy"),
    "lacks one": (lambda a: {"input_ids": a["input_ids"]}, "no array for the input attention_mask"),
    "one too many": (lambda a: a | {"pixels": a["input_ids"]}, "the graph has no input pixels"),
    "counts": (lambda a: a | {"position_ids": a["position_ids"][:3]}, "one row for each example"),
    "no examples": (lambda a: {n: x[:0] for n, x in a.items()}, "one row for each example"),
    "rank": (lambda a: a | {"input_ids": a["input_ids"][..., None]}, "the input needs"),
    "not finite": (
        lambda a: a | {"attention_mask": np.full_like(a["input_ids"], np.nan, np.float32)},
        "no finite numbers",
    ),
    "only padding": (
        lambda a: a | {"attention_mask": np.arange(8)[:, None] * a["attention_mask"]},
        "leaves no token of example 0",
    ),
    "words": (lambda a: a | {"input_ids": a["input_ids"].astype(str)}, "no finite numbers"),
    "fractions": (lambda a: a | {"input_ids": a["input_ids"] + 0.5}, "is float64, the input int64"),
    "unlike lengths": (lambda a: a | {"input_ids": a["input_ids"][:, :9]}, "does not run on them"),
    "tokens": (lambda a: a | {"input_ids": a["input_ids"] + 10**6}, "does not run on them"),
}


@pytest.mark.parametrize("case", BAD)
def test_inputs_that_do_not_fit(case, tmp_path, capsys):
    """One line, and nothing is written."""
    change, told = BAD[case]
    kept = subject("Llama")
    kept.write(tmp_path / "model.onnx")
    file = tmp_path / "examples.npz"
    made = change(examples(kept, 8, 1))
    if isinstance(made, bytes):
        file.write_bytes(made)
    elif made is not None:
        np.savez(file, **made)
    own = "--preset", "balanced", "--calibrate", str(file)
    assert applied(tmp_path / "model.onnx", tmp_path / "out", kept, *own) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in line and "examples.npz" in line and not (tmp_path / "out").exists()


def test_what_has_nothing_to_calibrate(tmp_path, capsys):
    """A graph without weights, several graphs, and a preset that does not calibrate."""
    text = "g (float[B,8] x) => (float[B,8] y) { y = Sin(x) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]>\n{text}')
    onnx.save(model, tmp_path / "a.onnx")
    text = "g (float[B,32] x) => (int64[B] y) { m = MatMul(x, w) y = ArgMax<axis=1,keepdims=0>(m) }"
    whole = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]>\n{text}')
    whole.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((32, 64), np.float32), "w"))
    onnx.save(whole, tmp_path / "c.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((4, 8), np.float32))
    words = ["-t", "int4", "--calibrate", str(tmp_path / "x.npz"), "-o", str(tmp_path / "out")]
    balanced = [*words, "--preset", "balanced"]
    for line, told in (
        (["-i", str(tmp_path / "a.onnx"), *balanced], "the graph has no weight to calibrate"),
        (["-i", str(tmp_path / "a.onnx"), *words], "nothing is calibrated"),
        (["-i", str(tmp_path / "c.onnx"), *balanced], "no output of floating-point numbers"),
    ):
        assert main(["apply", *line]) == 2
        assert told in capsys.readouterr().err
    assert main(["apply", "-i", str(tmp_path), *balanced]) == 2
    assert "for one graph, and" in capsys.readouterr().err
