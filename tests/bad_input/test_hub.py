"""The metadata that the hub reads in a package's README."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.package.hub import license_of, metadata


@pytest.fixture
def facts(raw, moved):
    """The demo's, with a checkpoint folder whose README a test may write."""
    return lambda **options: Facts.load(raw, Options(**options))


def parsed(text):
    """As the hub reads it."""
    return ModelCard(text + "# title\n").data


def test_a_package_of_a_hub_checkpoint(facts):
    made = facts()
    (made.checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen3-VL\n")
    data = parsed(metadata(made, "Qwen/Qwen3-VL-2B-Instruct"))
    assert data.base_model == "Qwen/Qwen3-VL-2B-Instruct"
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-text-to-text")
    assert data.library_name == "onnxruntime-genai"
    assert data.tags == ["int4", "onnx", "onnxruntime-genai", "qwen3_vl"]


def test_a_package_of_a_folder_names_no_base_model_and_no_license(facts):
    data = parsed(metadata(facts(text_precision="fp32"), "checkpoint"))
    assert data.base_model is None and data.license is None
    assert "fp32" in data.tags and "base_model_relation" not in data.to_dict()


def test_a_package_for_transformers_js(facts):
    data = parsed(metadata(facts(runtime="transformers.js"), "Qwen/Qwen3-VL-2B-Instruct"))
    assert data.library_name == "transformers.js" and "transformers.js" in data.tags


@pytest.mark.parametrize(
    "text",
    [
        "---\nlicense: [a, b]\n---\n",
        "---\nlicense: 'x\\n---\\n# mine'\n---\n",
        '---\nlicense: "a\\nbase_model: other/one"\n---\n',
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n",
        "---\nlicense: {a: {b: c}}\nlicense_link: javascript:alert(1)\n---\n",
        "---\n: : :\n---\n",
        "---\nlicense\n---\n",
        "no metadata",
        "",
    ],
)
def test_what_strangers_write_is_not_taken_over(facts, text):
    made = facts()
    (made.checkpoint / "README.md").write_text(text)
    assert license_of(made) == {}
    (made.checkpoint / "README.md").write_bytes(b"\xff\xfe\x00---")
    assert license_of(made) == {}


def test_another_license_with_its_name_and_link(facts):
    made = facts()
    text = (
        "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://a.example/L\n---\n"
    )
    (made.checkpoint / "README.md").write_text(text)
    assert license_of(made) == {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "https://a.example/L",
    }
