"""Decoders of other families as packages: onnxruntime-genai gives PyTorch's tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime_genai as og
import pytest
import torch
import transformers as tf
from exporters import EXPORTERS
from stock import DECODERS, VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache

from surgery.__main__ import main
from surgery.answer.conversation import Conversation
from surgery.answer.runtime import GREEDY, Sampling
from surgery.answer.text_runtime import TextRuntime

LEGACY = next(exporter for exporter in EXPORTERS if not exporter.dynamo)
ANSWER = 24
PROMPTS = ("the sea is wide", "a", "one two three four five six seven eight nine ten")
TEXT = "the sea is wide and deep. one two three four five six seven eight nine ten. a cat sat."
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
SPECIAL = ["<|pad|>", "<|start|>", "<|end|>", "<|turn|>"]


def write_tokenizer(folder):
    """A tokenizer of bytes and a few words, as Hugging Face's tools save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    pad, start, end, _ = SPECIAL
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A family's folder, as an exporter leaves it, and its PyTorch model; made once each."""
    made = {}

    def get(subject):
        if subject.name not in made:
            folder = tmp_path_factory.mktemp("source")
            LEGACY.write(subject, "sdpa", folder / "model.onnx")
            model = subject.build("sdpa").model
            model.config.save_pretrained(folder)
            write_tokenizer(folder)
            made[subject.name] = folder, model
        return made[subject.name]

    return get


def said_by(model, prompt):
    """PyTorch's greedy tokens."""
    tokens, cache, found = torch.tensor(prompt[None]), DynamicCache(), []
    for _ in range(ANSWER):
        with torch.no_grad():
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1:].argmax(-1)
        if int(tokens) == model.config.eos_token_id:  # ends an answer, and is no part of it
            break
        found.append(int(tokens))
    return found


def answered(package, prompt):
    """The package's greedy tokens."""
    model = og.Model(str(package))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + ANSWER, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt[None].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0)[len(prompt) :])


def applied(folder, out, *words):
    """The exit status of `apply --recipe decoder`."""
    return main(["apply", "-i", str(folder / "model.onnx"), "-o", str(out), "--recipe", "decoder",
                 "--max-length", "64", *words])  # fmt: skip


QUICK = ("Llama", "Gemma 3")
"""Families of every run of the tests; the others take their time to export."""
SUBJECTS = [
    pytest.param(
        subject, id=subject.name, marks=[] if subject.name in QUICK else pytest.mark.nightly
    )
    for subject in DECODERS
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_tokens(subject, source, tmp_path):
    """Token for token PyTorch's, through the package's own tokenizer."""
    folder, model = source(subject)
    assert applied(folder, tmp_path / "out") == 0
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder)
    own = og.Tokenizer(og.Model(str(tmp_path / "out")))
    for text in PROMPTS:
        prompt = own.encode(text)
        assert list(prompt) == tokenizer.encode(text, add_special_tokens=False)
        assert answered(tmp_path / "out", prompt) == said_by(model, prompt)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["type"] == model.config.model_type
    assert config["search"]["past_present_share_buffer"]
    assert config["model"]["decoder"]["num_key_value_heads"] == subject.heads[1]
    assert config["model"]["decoder"]["head_size"] == subject.heads[2]


@pytest.fixture(scope="module")
def checked(source, tmp_path_factory):
    """A Llama as a checkpoint of its own, and packages of its graph."""
    folder, model = source(DECODERS[0])
    model.save_pretrained(folder)
    out = tmp_path_factory.mktemp("checked")
    assert applied(folder, out / "fp32") == 0
    assert applied(folder, out / "int4", "-t", "int4") == 0
    return folder, model, out


def run(capsys, *words):
    """Exit status and output of a command."""
    status = main([str(word) for word in words])
    found = capsys.readouterr()
    return status, found.out, found.err


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int4", marks=pytest.mark.nightly)])
def test_verify(checked, capsys, precision):
    """Digests, configurations, the graph, an answer, and PyTorch's logits and tokens."""
    folder, _, out = checked
    status, said, _ = run(capsys, "verify", out / precision, "--checkpoint", folder)
    assert status == 0, said
    assert said.count("logits, ") == 3 and "files as they were written" in said
    if precision == "fp32":
        assert said.count("8 of 8 tokens equal") == 3


def test_prompts_in_8_bits(checked, capsys, tmp_path):
    """Both forms run, the cache is found in the branches, and nothing but a decoder is taken."""
    folder, _, out = checked
    assert applied(folder, tmp_path / "out", "-t", "int4", "--prefill", "int8") == 0
    told = capsys.readouterr().err
    assert "genai_config.json: type llama, 2 layers" in told and ".scales" not in told
    long = " ".join(PROMPTS * 4)
    wanted, found, plain = (
        TextRuntime(package).follow(TextRuntime(package).prompt(long), [0])[0]
        for package in (out / "fp32", tmp_path / "out", out / "int4")
    )
    assert 0 < np.linalg.norm(found - wanted) < 0.5 * np.linalg.norm(plain - wanted)
    status, said, _ = run(capsys, "verify", tmp_path / "out")
    assert status == 0 and "all inputs as long ones" in said and "all inputs as short" in said
    words = ["apply", "-i", folder / "model.onnx", "-o", tmp_path / "any", "-t", "int4"]
    status, _, err = run(capsys, *words, "--prefill", "int8")
    assert status == 2 and "--prefill int8: for decoders. Add --recipe decoder." in err


@pytest.mark.nightly
def test_verify_tells_another_checkpoint(checked, capsys, tmp_path):
    """Other weights, and none at all."""
    folder, model, out = checked
    other = type(model)(model.config)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    status, _, err = run(capsys, "verify", out / "fp32", "--checkpoint", tmp_path)
    assert status == 2 and "transformers cannot load it" in err
    other.save_pretrained(tmp_path)
    status, said, _ = run(capsys, "verify", out / "fp32", "--checkpoint", tmp_path)
    assert status == 1 and "is allowed" in said


def test_verify_finds_what_is_broken(checked, capsys, tmp_path):
    """One flipped byte of the weights, a size, and a tokenizer that is read otherwise."""
    package = shutil.copytree(checked[2] / "fp32", tmp_path / "package")
    path = package / "model.onnx.data"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, said, _ = run(capsys, "verify", package)
    assert status == 1 and "FAILED  model.onnx.data" in said
    path.write_bytes(data)
    for name, part, key, value, told in (
        ("genai_config.json", "model", "vocab_size", 7, "the decoder graph requires 512"),
        ("tokenizer.json", "pre_tokenizer", "add_prefix_space", True, "Hugging Face as ["),
    ):
        before = (package / name).read_text()
        config = json.loads(before)
        config[part][key] = value
        (package / name).write_text(json.dumps(config))
        status, said, _ = run(capsys, "verify", package)
        assert status == 1 and told in said, said
        (package / name).write_text(before)
    assert run(capsys, "verify", package)[0] == 0


def test_chat(checked, capsys):
    """The greedy answer of PyTorch, written with the package's own chat template."""
    folder, model, out = checked
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(folder)
    message = [{"role": "user", "content": PROMPTS[0]}]
    text = tokenizer.apply_chat_template(message, tokenize=False)
    assert text == f"<|turn|>{PROMPTS[0]}<|end|>"
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    runtime = TextRuntime(out / "fp32")
    prompt = runtime.prompt(runtime.ask(PROMPTS[0]))
    assert list(prompt.ids) == list(ids)
    assert list(runtime.generate(prompt, ANSWER, GREEDY)) == said_by(model, ids)
    conversation = Conversation(runtime, Sampling(temperature=0), ANSWER)
    assert "".join(conversation.say(PROMPTS[0], [])) == conversation.messages[-1]["content"]
    assert list(conversation.say("and on", []))  # goes on in the cache of the first turn
    status, said, _ = run(capsys, "chat", out / "fp32", PROMPTS[0], "--temperature", "0")
    assert status == 0 and said.strip()


def test_what_takes_pictures_only(checked, capsys, tmp_path):
    """One line: pictures for such a package, eval, and a question without a template."""
    package = shutil.copytree(checked[2] / "fp32", tmp_path / "package")
    for words, told in (
        (("eval", package), "a package of a language model, without pictures"),
        (("profile", package), "a package of a language model, without pictures"),
        (("chat", package, "a", "--image", "export_min/demo/images/shapes.png"), "no pictures"),
    ):
        status, _, err = run(capsys, *words)
        assert status == 2 and told in err.strip().splitlines()[-1]
    (package / "chat_template.jinja").unlink()
    status, _, err = run(capsys, "chat", package, "a")
    assert status == 2 and "has no chat template" in err
