"""A package whose head computes the logits of a few tokens in 8 bits, through the runtime."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from surgery.__main__ import main
from surgery.answer.runtime import Runtime
from surgery.base.errors import UserError
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.rewrite.shortlists import DRAFT, TOKENS
from surgery.verify import verify_package
from surgery.verify.opened import Opened
from surgery.verify.runtime import QUESTION, sample

LISTED = 32
FEW = Options(shortlist=LISTED, max_length=4096)
CLOSE = 2e-2
"""Of the largest logit: the head's own activations are not rounded to int8 behind a choice."""


@pytest.fixture(scope="session", params=["demo", "untied"])
def built(request, cases):
    """A trained checkpoint with a tied head, and a random one with a head of its own."""
    return cases(request.param)


@pytest.fixture(scope="session")
def package(built):
    return built.build("shortlist", FEW)


def test_verify_takes_it(built, package):
    """As it is by its likeliest tokens, and with the whole head by all."""
    report = verify_package(package, built.checkpoint)
    assert report.ok, report
    told = [one.what for group in report.findings.values() for one in group]
    assert sum("for all tokens" in what for what in told) == 3
    assert sum(f"the {LISTED // 4} likeliest" in what for what in told) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_likeliest_tokens_have_the_logits_of_8_bits(built, package, count):
    """Step by step along the answer of the package whose head computes all of them."""
    runs = [Runtime(folder) for folder in (built.int4, package)]
    pictures = sample(runs[0].sizing, count)
    prompts = [run.prompt(run.ask(QUESTION, count), pictures) for run in runs]
    tokens = runs[0].follow(prompts[0], [0] * 8).argmax(-1)
    whole, few = (run.follow(p, tokens) for run, p in zip(runs, prompts, strict=True))
    likeliest = np.argsort(-whole)[:, : LISTED // 4]
    scale = abs(whole).max()
    near = abs(np.take_along_axis(whole - few, likeliest, -1)).max() / scale
    print(f"{built.name}: {near:.1e}, all tokens {abs(whole - few).max() / scale:.1e}")
    assert near < CLOSE < abs(whole - few).max() / scale


def test_codes_are_stored_once(built, package):
    """The codes in 8 bits are read by rows; those in 4 bits come in addition, and are listed."""
    model = onnx.load(Opened(package).path("decoder"), load_external_data=False)
    (lookup,) = (n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    table = next(t for t in model.graph.initializer if t.name == lookup.input[0])
    config = built.reference.config.text_config
    assert list(table.dims) == [config.vocab_size, config.hidden_size]
    where = {entry.key: entry.value for entry in table.external_data}["location"]
    tied = built.name == "demo"
    assert tied == (where == Opened(package).path("embedding").name + ".data")
    listed = json.loads((package / "quantization.json").read_text(encoding="utf-8"))["rounded"]
    bits = {row["name"]: row["bits"] for row in listed if row["name"].startswith(head(lookup))}
    assert bits == {head(lookup): 8, head(lookup) + DRAFT: 4}


def head(lookup):
    return lookup.input[0].removesuffix(".packed")


def test_verify_sees_a_choice_that_is_wrong(package, built, tmp_path, capsys):
    """Scales of the weight that chooses, 10 % too large."""
    copy = shutil.copytree(package, tmp_path / "package")
    path = Opened(copy).path("decoder")
    graph = onnx.load(path, load_external_data=False).graph
    (scales,) = (t for t in graph.initializer if t.name.endswith(f"{DRAFT}.scales"))
    place = {entry.key: entry.value for entry in scales.external_data}
    with (copy / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        numbers = np.frombuffer(file.read(int(place["length"])), np.float32) * np.float32(1.1)
        file.seek(int(place["offset"]))
        file.write(numbers.tobytes())
    words = ["verify", str(copy), "--no-digests", "--checkpoint", str(built.checkpoint)]
    assert main(words) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert len(failed) == 1 and "further from the checkpoint's" in failed[0]


def test_steps_are_checked(demo, tmp_path, capsys):
    """With every token chosen, the pass changes nothing but the order of sums."""
    words = ["-i", str(demo.raw), "-o", str(tmp_path / "p"), "--shortlist", str(LISTED)]
    assert main([*words, "--max-length", "4096", "--check-steps"]) == 0
    out, err = capsys.readouterr()
    (line,) = (x for x in (out + err).splitlines() if " shortlist " in x)
    assert "checked: logits differs by" in line and "dequantized" not in line


@pytest.mark.parametrize(
    "options",
    [
        Options(),  # a vocabulary of 608
        Options(shortlist=0),
        Options(shortlist=LISTED, head_bits=4),
        Options(shortlist=LISTED, text_precision="fp32"),
        Options(shortlist=LISTED, keep="embed_tokens"),
        Options(shortlist=LISTED, execution_provider="cuda"),
        Options(shortlist=LISTED, runtime="transformers.js"),
    ],
    ids=str,
)
def test_where_nothing_is_chosen(demo, options):
    assert not Facts.load(demo.raw, options).shortlisted
    assert Facts.load(demo.raw, FEW).shortlisted


def test_default_package_of_a_small_vocabulary(demo):
    graph = onnx.load(Opened(demo.int4).path("decoder"), load_external_data=False).graph
    assert TOKENS not in {tensor.name for tensor in graph.initializer}


@pytest.mark.parametrize("number", [-1, 4097])
def test_numbers_that_no_run_can_use(number):
    with pytest.raises(UserError, match=f"--shortlist {number}: must be from 0 to 4,096"):
        Options(shortlist=number)
