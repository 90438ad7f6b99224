"""Random damage to the files of a checkpoint: an answer or one line, never anything else.

300 cases a reader by default; FUZZ=N in the environment tries N of each.
"""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_min.checkpoint import Checkpoint
from export_min.sizes import check_sizes
from surgery.answer.trusted import check_config, check_processor
from surgery.base.demo import DEMO
from surgery.base.errors import UserError
from surgery.base.files import parse_json, read_json
from surgery.base.tokens import Tokens

CASES = int(os.environ.get("FUZZ", "300"))
fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, 1, -1, 1 << 31, 1 << 40, 1 << 62]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../x", "/etc/passwd", "x.so", "%d", "<|im_end|>"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw, original):
    """A JSON object with up to three values replaced, removed or added."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        part = value
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(part[key], dict | list) and draw(st.integers(0, 3)):
                part = part[key]
                continue
            if isinstance(part, dict) and not draw(st.integers(0, 3)):
                del part[key]
            else:
                part[key] = draw(VALUES)
            break
    return value


def holds(work):
    """Run; all that may come out is a `UserError` of one line that is not long."""
    try:
        work()
    except UserError as e:
        line = str(e)
        assert line and "\n" not in line and len(line) < 1000, line


@fuzzed
@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path, data):
    (tmp_path / "f.json").write_bytes(data)
    holds(lambda: read_json(tmp_path / "f.json", UserError))


@fuzzed
@given(value=VALUES)
def test_json_comes_back_or_is_refused(value):
    text = json.dumps(value)
    try:
        found = parse_json(text)
    except ValueError as e:
        assert "NaN" in text or "Infinity" in text or "nests" in str(e)
    else:
        assert json.dumps(found) == text


@pytest.fixture
def demo(tmp_path):
    """The demo's files under links, but for those that a test writes."""
    for path in DEMO.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def written(folder, name, value):
    path = folder / name
    path.unlink()
    path.write_text(json.dumps(value), encoding="utf-8")
    return folder


@fuzzed
@given(config=damaged(json.loads((DEMO / "config.json").read_text())))
def test_config(demo, config):
    folder = written(demo, "config.json", config)
    holds(lambda: check_sizes(Checkpoint(folder, "fuzzed")))


SMALL = json.loads((DEMO / "tokenizer.json").read_text())
SMALL["model"]["merges"] = []


@fuzzed
@given(
    tokenizer=damaged(SMALL), config=damaged({"pad_token": "<|endoftext|>", "chat_template": "x"})
)
def test_tokenizer(demo, tokenizer, config):
    written(demo, "tokenizer.json", tokenizer)
    folder = written(demo, "tokenizer_config.json", config)
    holds(lambda: Tokens.read(folder, UserError).emitted())


@fuzzed
@given(index=damaged({"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}))
def test_index(demo, index):
    path = demo / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    holds(lambda: Checkpoint(demo, "fuzzed").weights)


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


@fuzzed
@given(header=damaged(HEADER), cut=st.integers(0, 40), length=st.integers(-3, 3))
def test_shard(demo, header, cut, length):
    text = json.dumps(header).encode()
    size = max(0, len(text) + (length if abs(length) == 3 else 0))
    (demo / "model.safetensors").unlink()
    data = size.to_bytes(8, "little") + text + bytes(32)
    (demo / "model.safetensors").write_bytes(data[: len(data) - (cut if cut > 30 else 0)])
    holds(lambda: Checkpoint(demo, "fuzzed").weights)


def package():
    """Configurations of a package, as built."""
    from surgery.engine.facts import Facts
    from surgery.engine.options import Options
    from surgery.package.genai_config import genai_config
    from surgery.package.processor_config import processor_config

    config = json.loads((DEMO / "config.json").read_text())
    text = {"max_position_embeddings": 4096, **config["text_config"]}
    manifest = {"checkpoint": str(DEMO), "resolved": {**config, "text_config": text}}
    facts = Facts(DEMO, manifest, options=Options())
    return genai_config(facts), processor_config(facts)


GENAI, PROCESSOR = package()


@fuzzed
@given(config=damaged(GENAI))
def test_genai_config(tmp_path, config):
    holds(lambda: check_config(tmp_path, config))


@fuzzed
@given(config=damaged(PROCESSOR))
def test_processor_config(tmp_path, config):
    holds(lambda: check_processor(tmp_path / "processor_config.json", config))


def test_what_is_built_is_accepted(tmp_path):
    check_config(tmp_path, GENAI)
    check_processor(tmp_path, PROCESSOR)
