"""Decoders of other families as packages: onnxruntime-genai gives PyTorch's tokens."""

from __future__ import annotations

import json

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


def said(model, prompt):
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
        assert answered(tmp_path / "out", prompt) == said(model, prompt)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["type"] == model.config.model_type
    assert config["search"]["past_present_share_buffer"]
    assert config["model"]["decoder"]["num_key_value_heads"] == subject.heads[1]
    assert config["model"]["decoder"]["head_size"] == subject.heads[2]
