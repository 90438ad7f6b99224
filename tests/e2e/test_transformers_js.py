"""Packages for transformers.js: the unmodified library says what PyTorch says.

They run in Node, on onnxruntime-node and on the WebAssembly build that the library loads in a
browser. tests/web/README.md has the command that installs what they need.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from surgery.__main__ import main
from surgery.answer.runtime import Runtime
from surgery.engine.options import Options

ROOT = Path(__file__).resolve().parents[2]
ANSWER = ROOT / "tests" / "web" / "answer.mjs"
QUESTION = "what color is the shape?"
STEPS = 24
SIZES: dict[str, list[tuple[int, int]]] = {
    "text only": [],
    "one": [(128, 128)],
    "two different": [(64, 128), (160, 96)],
    "two equal": [(96, 96), (96, 96)],
}
"""Width and height of the pictures of a prompt, where a token has 32 pixels a side."""
ASYNCIFY = "ort-wasm-simd-threaded.asyncify"
"""The build of onnxruntime-web that the library loads in a browser."""
TOLERANCE = 1e-4
RESIZED = {
    "text only": [],
    "as it is": [(128, 160)],
    "two, made larger": [(30, 20), (64, 64)],
    "not of whole tokens": [(208, 301)],
    "made smaller": [(1900, 1300)],
}
"""Sizes of pictures that the processor leaves alone, and of others."""


def pictures_of(sizes: list[tuple[int, int]], unit: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(h * unit // 32, w * unit // 32, 3) for w, h in sizes]
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


def inputs_of(case: Any, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    pictures = pictures_of(sizes, case.unit)
    return case.reference.inputs(case.reference.chat(QUESTION, len(pictures)), pictures)


def ask(
    modules: Path,
    folder: Path,
    place: Path,
    prompts: list[dict[str, Any]] | None = None,
    questions: list[dict[str, Any]] | None = None,
    wasm: str | None = None,
) -> dict[str, Any]:
    """What transformers.js makes of Hugging Face's inputs, or of questions with raw pictures."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    request = {"package": str(folder.resolve()), "wasm": wasm, "prompts": [], "questions": []}
    for i, inputs in enumerate(prompts or []):
        told = {"input_ids": inputs["input_ids"][0].tolist(), "steps": STEPS}
        told |= {"pixel_values": None, "image_grid_thw": []}
        if "pixel_values" in inputs:
            file = place / f"pixels_{i}.bin"
            file.write_bytes(inputs["pixel_values"].numpy().astype("<f4").tobytes())
            told |= {"pixel_values": str(file), "image_grid_thw": inputs["image_grid_thw"].tolist()}
        request["prompts"].append(told)
    request["questions"] = questions or []
    (place / "request.json").write_text(json.dumps(request))
    # liftoff compiles WebAssembly in a second, where the default takes a minute
    words = ["node", "--liftoff-only", str(ANSWER), str(modules), str(place / "request.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["demo", "untied", "qwen2", "qwen2_5"])
def built(request, cases):
    """Families and heads in turn."""
    return cases(request.param)


@pytest.mark.parametrize("wasm", [None, ASYNCIFY], ids=["node", "wasm"])
def test_tokens_and_logits_are_pytorchs(built, modules, tmp_path, wasm):
    inputs = [inputs_of(built, sizes) for sizes in SIZES.values()]
    got = ask(modules, built.browser(), tmp_path, inputs, wasm=wasm)["prompts"]
    for kind, given, found in zip(SIZES, inputs, got, strict=True):
        answer = built.reference.generate(given, STEPS, stop=False)
        assert found["tokens"] == answer.tokens, kind
        difference = abs(np.array(found["logits"]) - answer.logits[0]).max()
        print(f"{kind}: max|dlogit| {difference:.1e}")
        assert difference < TOLERANCE, kind


@pytest.mark.parametrize("wasm", [None, ASYNCIFY], ids=["node", "wasm"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_int4_is_that_of_the_other_runtime(demo, modules, tmp_path, precision, wasm):
    """The same codes; activations are rounded alike, or to float16."""
    runtime, folder = Runtime(demo.int4), demo.browser("int4", precision)
    inputs = [inputs_of(demo, sizes) for sizes in SIZES.values()]
    got = ask(modules, folder, tmp_path, inputs, wasm=wasm)["prompts"]
    for kind, found in zip(SIZES, got, strict=True):
        pictures = pictures_of(SIZES[kind], demo.unit)
        prompt = runtime.prompt(runtime.ask(QUESTION, len(pictures)), pictures)
        want = runtime.follow(prompt, found["tokens"])[0]
        ours = np.array(found["logits"])
        cosine = ours @ want / np.linalg.norm(ours) / np.linalg.norm(want)
        print(f"{kind}: cosine {cosine:.6f}, max|dlogit| {abs(ours - want).max():.1e}")
        assert cosine > 0.999, kind


def test_pictures_are_resized_as_with_pytorch(demo, modules, tmp_path):
    """`prepare` of the package makes Hugging Face's inputs of pictures of any size."""
    questions = []
    for kind, sizes in RESIZED.items():
        told = []
        for i, picture in enumerate(drawn(sizes)):
            file = tmp_path / f"{kind} {i}.rgb"
            file.write_bytes(picture.tobytes())
            told.append({"file": str(file), "width": picture.width, "height": picture.height})
        questions.append({"text": QUESTION, "pictures": told})
    got = ask(modules, demo.browser(), tmp_path, questions=questions)["questions"]
    for (kind, sizes), found in zip(RESIZED.items(), got, strict=True):
        want = demo.reference.inputs(demo.reference.chat(QUESTION, len(sizes)), drawn(sizes))
        assert found["input_ids"] == want["input_ids"][0].tolist(), kind
        if sizes:
            assert found["image_grid_thw"] == want["image_grid_thw"].flatten().tolist()
            pixels = np.fromfile(found["pixel_values"], "<f4")
            np.testing.assert_allclose(pixels, want["pixel_values"].numpy().ravel(), atol=1e-6)


def drawn(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Pictures with edges, slopes and noise."""
    made = []
    for width, height in sizes:
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        noise = np.random.default_rng(width).integers(0, 256, x.shape)
        channels = [255 * (x // 9 % 2), 255 * y // height, noise]
        made.append(Image.fromarray(np.stack(channels, -1).astype(np.uint8)))
    return made


def test_deepstack_reaches_the_decoder(demo):
    """Each of the D levels has its columns in all three graphs."""
    folder, width = demo.browser(), demo.reference.config.text_config.hidden_size
    for name, value in (
        ("vision_encoder", "image_features"),
        ("embed_tokens", "inputs_embeds"),
        ("decoder_model_merged", "inputs_embeds"),
    ):
        graph = ir.load(folder / "onnx" / f"{name}.onnx").graph
        (found,) = (v for v in (*graph.inputs, *graph.outputs) if v.name == value)
        assert found.shape[-1] == (1 + demo.levels) * width


def test_no_op_that_the_browser_lacks(demo):
    """Not the quantized lookup, and no bfloat16."""
    for precision in ("fp32", "int4"):
        for file in (demo.browser(precision) / "onnx").glob("*.onnx"):
            graph = ir.load(file).graph
            assert not any(node.op_type == "GatherBlockQuantized" for node in graph)
            dtypes = {value.dtype for value in graph.initializers.values()}
            assert ir.DataType.BFLOAT16 not in dtypes


def test_the_table_has_eight_bits_with_a_head_of_four(demo):
    """The two are stored apart, each in the graph that reads it."""
    options = Options(text_precision="int4", runtime="transformers.js", head_bits=4)
    graph = ir.load(demo.build("js-head4", options) / "onnx" / "embed_tokens_q4.onnx").graph
    text = demo.reference.config.text_config
    sizes = {tuple(value.shape): value.dtype for value in graph.initializers.values()}
    assert sizes[text.vocab_size, text.hidden_size] == ir.DataType.UINT8


def test_verify_says_what_it_checks(demo, tmp_path, capsys):
    folder = demo.browser()
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "512 columns everywhere" in out and "not checked" in out
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = copy / "onnx" / "vision_encoder.onnx_data"
    data.write_bytes(data.read_bytes()[:-64])
    assert main(["verify", str(copy)]) == 1
    assert "FAILED  vision_encoder.onnx" in capsys.readouterr().out
    shutil.copy(folder / "onnx" / data.name, data)
    config = json.loads((copy / "config.json").read_text())
    config["transformers.js_config"]["use_external_data_format"]["embed_tokens.onnx"] = 2
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(copy)]) == 1
    assert "config.json counts 2 files" in capsys.readouterr().out
    assert main(["verify", str(copy), "--checkpoint", "demo"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-e", "cuda"], "--for transformers.js -e cuda: one package serves all its devices"),
        (["--image-size", "384"], "--for transformers.js --image-size 384: its processor"),
    ],
)
def test_refusals(demo, tmp_path, capsys, words, message):
    folder = tmp_path / "out"
    given = ["-i", str(demo.raw), "-o", str(folder), "--for", "transformers.js", *words]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()
