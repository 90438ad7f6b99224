"""Calibration on the user's own text, pictures and answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from surgery.__main__ import main
from surgery.base import manifest
from surgery.base.demo import DEMO
from surgery.base.errors import UserError
from surgery.calibrate.batches import PROBE, batches_from
from surgery.calibrate.examples import Example, conversations, digest, documents, read_examples
from surgery.calibrate.sampler import Sampler
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.jobs import calibrate

PICTURE = DEMO / "images" / "shapes.png"
TEXT = "the red circle is left of the blue square and above the green triangle. " * 40
LINES = [
    {"text": TEXT},
    {"image": "shapes.png", "question": "where is the green rectangle?", "answer": "bottom left"},
    {"question": "what is 2 + 2?"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A document, a question about a picture with its answer, and one that the model answers."""
    shutil.copy(PICTURE, tmp_path / "shapes.png")
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return path


def test_lines(file: Path) -> None:
    assert read_examples(file) == [
        Example(document=TEXT),
        Example("", LINES[1]["question"], (file.parent / "shapes.png",), "bottom left"),
        Example("", LINES[2]["question"]),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2"),
        ("[]", "no JSON object"),
        ("{}", "'question' is missing"),
        ('{"text": ""}', "text is empty"),
        ('{"text": 3}', "text must be text"),
        ('{"question": "a", "answer": null}', "answer must be text"),
        ('{"question": "a", "image": 3}', "image"),
        ('{"question": "a", "image": [3]}', "image must be text"),
    ],
)
def test_a_line_that_is_no_example(file: Path, line: str, why: str) -> None:
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=why) as found:
        read_examples(file)
    assert "line 2" in str(found.value) and "\n" not in str(found.value)


def test_rows(package: Path, file: Path) -> None:
    """Documents are cut and run as batches, questions come with their pictures and answers."""
    sampler, examples = Sampler(package), read_examples(file)
    whole = sampler.encode(TEXT)
    rows = list(documents(sampler, examples, 64))
    assert [row.ids.shape[1] for row in rows[:-1]] == [64] * (len(rows) - 1)
    assert np.concatenate([row.ids.reshape(-1) for row in rows]).tolist() == whole
    asked, answered = sampler.encoded([*conversations(sampler, examples, 5)])
    image = sampler.model["image_token_id"]
    assert (asked.ids == image).sum() == len(asked.features) > 0
    answer = sampler.encode("bottom left")
    assert asked.ids[0, -len(answer) :].tolist() == answer
    assert answered.ids.shape[1] > len(sampler.encode("what is 2 + 2?"))


def test_batches(package: Path, file: Path, calibration) -> None:
    """All rows reach the decoder; probe rows are cut from the documents."""
    inputs = list(calibration.work.model.graph.inputs)
    sampler = Sampler(package)
    length = len(sampler.encode(TEXT))
    batches, probe = batches_from(sampler, read_examples(file), inputs)
    tokens = sum(int(np.prod(b["inputs_embeds"].shape[:2])) for b in batches)
    assert tokens > length
    assert probe["inputs_embeds"].shape[1] == PROBE
    assert batches[0].keys() == probe.keys() == calibration.rows.keys()


def test_too_little_text(package: Path, calibration) -> None:
    with pytest.raises(UserError, match="--calibrate: needs 4 runs of 32 tokens of text"):
        batches_from(
            Sampler(package),
            [Example(document="a red circle")],
            list(calibration.work.model.graph.inputs),
        )


def test_the_file_and_its_pictures_decide(file: Path, raw: Path) -> None:
    """A change of a byte of either starts another calibration."""

    def names():
        options = Options(preset="balanced", calibrate=str(file), max_length=4096)
        return digest(file), calibrate.identity(Facts.load(raw, options), 512)

    first = names()
    with (file.parent / "shapes.png").open("ab") as picture:
        picture.write(b"\0")
    second = names()
    file.write_text(file.read_text() + "\n")
    third = names()
    assert len({*first, *second, *third}) == 6


def test_it_needs_a_preset_that_calibrates(file: Path, raw: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "package"
    code = main(["-i", str(raw), "-o", str(out), "--calibrate", str(file)])
    assert code == 2 and not out.exists()
    assert "--calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["examples.jsonl", "shapes.png"])
def test_what_is_missing_is_found_before_any_work(
    lost: str, file: Path, raw: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (file.parent / lost).unlink()
    words = ["-i", str(raw), "-o", "package", "--preset", "best", "--calibrate", str(file)]
    assert main(words) == 2
    assert lost in capsys.readouterr().err
    assert not (tmp_path / "package").exists() and not (tmp_path / "build").exists()


@pytest.mark.nightly  # builds a calibrated package, which takes minutes
def test_a_package(file: Path, raw: Path, tmp_path: Path, monkeypatch) -> None:
    """The command builds it; the manifest names the file without its folder."""
    monkeypatch.chdir(tmp_path)
    words = ["-i", str(raw), "-o", "package", "--preset", "balanced", "--calibrate", str(file)]
    assert main(words) == 0
    told = manifest.read(tmp_path / "package")
    assert told is not None and told["options"]["calibrate"] == "examples.jsonl"
    assert json.loads((tmp_path / "package" / "quantization.json").read_text())["measured"]
