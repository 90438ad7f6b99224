"""A package whose vision tower has linear weights in 8 bits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_graphs import run, session

from export_min import open_checkpoint
from export_min.reference import Reference
from surgery.__main__ import main
from surgery.answer.runtime import Runtime
from surgery.engine.options import Options
from surgery.package.genai_config import NO_PREPACKING
from surgery.rewrite.float_activations import INTEGER, float_activations
from surgery.verify.opened import Opened
from surgery.verify.rounding import every, unpacked
from surgery.verify.runtime import QUESTION, sample

GRIDS = (
    [[1, 4, 6], [1, 2, 8], [1, 6, 2]],
    [[3, 4, 4], [1, 10, 6], [1, 2, 12]],
    [[1, 2, 40]],
    [[1, 24, 24]],
)
"""Pictures of unlike sizes in one call, frames, a panorama."""
TRAINED, RANDOM = 2e-2, 5e-2
"""Length of the difference from float32 features over theirs, activations rounded to int8: 1.1 % at
most with the demo's trained weights, 3.0 % with random ones."""
FLOAT_ACTIVATIONS = 2e-5
"""Of the largest feature: the same weights and float activations against PyTorch's."""
PATCHES = "model.visual.patch_embed.proj.weight"


INT8 = Options(precision="int8", text_precision="fp32", max_length=4096)


@pytest.fixture(scope="session")
def package(case):
    return case.build("int8", INT8)


@pytest.fixture(scope="session")
def tower(package):
    """The vision graph."""
    return Opened(package).graphs["vision"]


def feed(case, grids):
    """Random pictures."""
    grid, vision = np.array(grids, np.int64), case.reference.config.vision_config
    columns = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = np.random.default_rng(3).standard_normal((int(grid.prod(-1).sum()), columns))
    return {"pixel_values": pixels.astype(np.float32), "image_grid_thw": grid}


def distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_features_are_near_those_in_float32(case, package):
    """On grids that the export has not seen."""
    graphs = [session(Opened(folder).path("vision")) for folder in (package, case.fp32)]
    for grids in GRIDS:
        found, wanted = (run(g, feed(case, grids))["image_features"] for g in graphs)
        error = distance(found, wanted)
        print(f"{grids}: relative error {error:.4f}")
        assert 1e-5 < error < (TRAINED if case.name == "demo" else RANDOM)


def test_float_products_are_those_of_pytorch_with_the_unpacked_weights(case, package, tmp_path):
    """Each weight and each bias is where it belongs."""
    path = Opened(package).path("vision")
    shutil.copyfile(f"{path}.data", tmp_path / f"{path.name}.data")
    model = ir.load(path)
    float_activations(model)
    ir.save(model, tmp_path / path.name)
    graph = session(tmp_path / path.name)
    reference = Reference(open_checkpoint(case.checkpoint))
    reference.replace(unpacked(Opened(package)))
    for grids in GRIDS:
        feeds = feed(case, grids)
        with torch.no_grad():
            out = reference.model.model.visual(
                torch.tensor(feeds["pixel_values"]),
                grid_thw=torch.tensor(feeds["image_grid_thw"]),
                return_dict=True,
            )
        deep = out.deepstack_features if case.levels else []
        wanted = torch.cat([out.pooler_output, *deep], -1).numpy()
        found = run(graph, feeds)["image_features"]
        assert abs(found - wanted).max() <= FLOAT_ACTIVATIONS * max(1, abs(wanted).max())


def test_every_linear_weight_but_the_patch_embedding(case, package, tower):
    """Codes with a scale for each column, and no product with a float weight besides."""
    products = [node for node in tower.graph if node.op_type == INTEGER]
    vision = case.reference.model.model.visual
    linear = {
        (m.in_features, m.out_features) for m in vision.modules() if isinstance(m, torch.nn.Linear)
    }
    assert len(products) == sum(isinstance(m, torch.nn.Linear) for m in vision.modules())
    for node in products:
        codes, scales = node.inputs[1], node.inputs[3]
        assert codes.dtype == ir.DataType.INT8 and tuple(codes.shape) in linear
        assert scales.dtype == ir.DataType.FLOAT and tuple(scales.shape) == codes.shape[1:]
        assert node.inputs[0].producer().op_type == "QuantizeLinear"
    stored = [
        value.name
        for node in tower.graph
        if node.op_type in ("MatMul", "Gemm")
        for value in node.inputs[1:2]
        if value is not None and (value.is_initializer() or value.producer().op_type == "Cast")
    ]
    assert [name for name in stored if name.endswith("weight")] == [PATCHES]


def test_verify_knows_it(package, case, capsys):
    assert main(["verify", str(package), "--checkpoint", str(case.checkpoint)]) == 0
    assert "quantized weights" in capsys.readouterr().out


def test_a_scale_that_is_wrong_is_named(demo, tmp_path, capsys):
    """In one row of one matrix of the tower."""
    package = demo.build("int8", INT8)
    shutil.copytree(package, tmp_path / "package")
    path = Opened(tmp_path / "package").path("vision")
    found = next(v for v in ir.load(path).graph.initializers.values() if v.name.endswith(".scales"))
    tensor = found.const_value
    with open(f"{path}.data", "r+b") as file:
        file.seek(tensor.offset)
        scale = np.frombuffer(file.read(4), np.float32)
        file.seek(tensor.offset)
        file.write((scale * np.float32(1.1)).tobytes())
    words = ["verify", str(tmp_path / "package"), "--no-digests", "--checkpoint", "demo"]
    assert main(words) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "FAILED" in line)
    assert found.name.removesuffix(".scales") in line and "further" in line


def test_the_runtime_answers_as_in_float32(demo):
    """Token for token, about pictures of unlike sizes."""
    package = demo.build("int8", INT8)
    answers = []
    for folder in (package, demo.fp32):
        runtime = Runtime(folder)
        pictures = sample(runtime.sizing, 2)
        prompt = runtime.prompt(runtime.ask(QUESTION, 2), pictures)
        answers.append(list(runtime.generate(prompt, 16, {"do_sample": False})))
    assert answers[0] == answers[1] and len(answers[0]) > 1


def test_weights_are_packed_when_the_package_is_loaded(demo):
    """Without prepacking, integer kernels would pack them again in each run."""
    for options in (INT8, Options(max_length=4096)):
        package = demo.build(f"packed-{options.text_precision}", options)
        assert NO_PREPACKING not in Opened(package).model["vision"]["session_options"]


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ({}, "int8"),
        ({"text_precision": "fp32"}, "fp32"),
        ({"text_precision": "fp16"}, "fp32"),
        ({"execution_provider": "cuda"}, "fp32"),
        ({"runtime": "transformers.js"}, "fp32"),
        ({"precision": "fp32"}, "fp32"),
        ({"text_precision": "fp32", "precision": "int8"}, "int8"),
    ],
)
def test_what_auto_stands_for(words, precision):
    options = Options(**words)
    assert options.vision_precision == options.data()["precision"] == precision


@pytest.mark.parametrize("provider", ["cuda", "dml"])
def test_other_providers_have_float_activations(demo, provider):
    """The same weights and float32 products, which the CPU runs too."""
    options = Options(precision="int8", execution_provider=provider, max_length=4096)
    paths = [Opened(demo.build(f"int8-{provider}", options)).path("vision")]
    paths.append(Opened(demo.fp32).path("vision"))
    products = [n for n in ir.load(paths[0]).graph if n.op_type == "MatMulNBits"]
    assert {n.attributes["accuracy_level"].as_int() for n in products} == {0}
    found, wanted = (run(session(p), feed(demo, GRIDS[0]))["image_features"] for p in paths)
    assert distance(found, wanted) < TRAINED


@pytest.mark.parametrize("text", ["fp32", "int4"])
def test_what_the_package_says_of_itself(demo, tmp_path, text):
    """The card and quantization.json, and `--keep` counts for the tower too."""
    package = tmp_path / "package"
    words = ["-p", "int8", "-t", text, "--keep", "visual.merger", "--quiet"]
    assert main(["-i", str(demo.raw), "-o", str(package), *words]) == 0
    card = (package / "README.md").read_text()
    assert f"vision in int8, embedding in fp32, decoder in {text}" in card
    assert "2 of 28 matrices stay in float" in card
    found = list(every(Opened(package)))
    listed = json.loads((package / "quantization.json").read_text())
    named = {row["name"] for row in (*listed["weights"], *listed["rounded"])}
    tower = [one.name for one in found if one.name.startswith("model.visual.")]
    assert named >= set(tower) and len(tower) == 26
    assert not any("visual.merger" in name for name in tower)
