"""The runtime reads text as Hugging Face does, or there is no package."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from surgery.answer import reading
from surgery.answer.reading import NOT_COMPOSED, Reading, differences
from surgery.base.demo import DEMO
from surgery.base.errors import PackageError
from surgery.base.tokens import Tokens
from surgery.package.byte_level import READ, decoder_for_runtime, is_byte_level
from surgery.package.tokenizer import copy_tokenizer

GENAI = {"model": {"type": "llama", "vocab_size": 608, "context_length": 32, "bos_token_id": 1,
                   "pad_token_id": 0, "eos_token_id": [1], "decoder": {"filename": "none.onnx"}},
         "search": {}}  # fmt: skip
MARK = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
GGUF = [{"type": "ByteFallback"}, {"type": "Fuse"}, MARK, BYTES]
"""Steps of the decoder that transformers 4 writes for a byte-level tokenizer out of GGUF."""


@pytest.fixture
def checkpoint(tmp_path):
    """The tokenizer of the demo."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def edited(folder, name, change):
    """Change a JSON file; `...` removes a key."""
    path = folder / name
    values = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def packaged(folder):
    """What a package has of a tokenizer, and the line about it."""
    out = folder.parent / "package"
    out.mkdir(exist_ok=True)
    told = copy_tokenizer(Tokens.read(folder, PackageError), out)
    (out / "genai_config.json").write_text(json.dumps(GENAI))
    return out, told


def wrong(folder, file):
    """Texts that are read differently, other forms aside."""
    answer = differences(folder, file)
    assert "error" not in answer, answer["error"]
    return [found["text"] for found in answer["differences"] if not found["form"]]


CLASSES = [*sorted(READ), *(f"{name}Fast" for name in sorted(READ)), "LlamaTokenizer",
           "CodeLlamaTokenizerFast", "GemmaTokenizer", "CLIPTokenizer", "T5Tokenizer", "Unheard",
           ""]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_bytes_of_any_class(checkpoint, name):
    """Bytes are read as bytes, whatever the class says: it stays only where that is so."""
    edited(checkpoint, "tokenizer_config.json", {"tokenizer_class": name or ...})
    out, told = packaged(checkpoint)
    assert wrong(out, checkpoint / "tokenizer.json") == []
    found = json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert bool(told) == (found != name) and (name or "missing") in (told or found)


def test_bytes_behind_a_decoder_of_another_kind(checkpoint):
    """As transformers makes it of GGUF: the runtime alone would read spaces as no token."""
    edited(checkpoint, "tokenizer.json", {"decoder": {"type": "Sequence", "decoders": GGUF}})
    edited(checkpoint, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    (checkpoint / "genai_config.json").write_text(json.dumps(GENAI))
    assert "Hello world" in wrong(checkpoint, checkpoint / "tokenizer.json")
    out, told = packaged(checkpoint)
    assert wrong(out, checkpoint / "tokenizer.json") == []
    assert "LlamaTokenizer became PreTrainedTokenizerFast and its decoder" in told
    before, after = (json.loads((x / "tokenizer.json").read_text()) for x in (checkpoint, out))
    assert after == {**before, "decoder": BYTES}


def test_what_is_not_bytes_stays():
    """Only what model, pre-tokenizer and decoder agree on is byte-level."""
    whole = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"},
             "decoder": {"type": "Sequence", "decoders": GGUF}}  # fmt: skip
    assert is_byte_level(whole) and decoder_for_runtime(whole) == BYTES
    for change in ({"model": {"type": "Unigram"}}, {"model": 5}, {"pre_tokenizer": None},
                   {"decoder": {"type": "Sequence", "decoders": GGUF[:3]}}):  # fmt: skip
        assert not is_byte_level(whole | change)
    for steps in ([*GGUF, {"type": "Strip"}], [{"type": "Sequence", "decoders": GGUF}], GGUF[3:]):
        decoder = {"type": "Sequence", "decoders": steps}
        assert decoder_for_runtime(whole | {"decoder": decoder}) is None


UNREADABLE = {
    "splitting by an unknown type": {"pre_tokenizer": {"type": "Unheard"}},
    "splitting by nothing": {"pre_tokenizer": {}},
    "a broken expression": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated",
                 "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                 "use_regex": False},
            ],
        }
    },
    "no merges": {"model": {"type": "BPE", "vocab": {"a": 0}}},
    "an unknown model": {"model": {"type": "Unheard", "vocab": {"a": 0}}},
    "another decoder": {"decoder": {"type": "Unheard"}},
    "spaces put in front": {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                          "use_regex": True},
    },
    "small letters": {"normalizer": {"type": "Lowercase"}},
}  # fmt: skip


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE)
def test_refused_in_one_line(checkpoint, change):
    """What one of both cannot read, or reads differently."""
    edited(checkpoint, "tokenizer.json", change)
    out, _ = packaged(checkpoint)
    file = checkpoint / "tokenizer.json"
    with Reading(out, file) as asked, pytest.raises(PackageError) as refused:
        asked.note()
    line = str(refused.value)
    assert line.startswith(f"{file}: ") and "\n" not in line
    assert "cannot read it" in line or ("genai reads '" in line and "Hugging Face as [" in line)


def test_an_unknown_class_of_another_kind(checkpoint):
    """Where the bytes do not say it, a class that the runtime lacks is refused."""
    edited(checkpoint, "tokenizer.json", {"decoder": None})
    edited(checkpoint, "tokenizer_config.json", {"tokenizer_class": "Unheard"})
    out, told = packaged(checkpoint)
    with Reading(out, out / "tokenizer.json") as asked, pytest.raises(PackageError) as refused:
        asked.note()
    assert not told and "Unsupported tokenizer class: Unheard" in str(refused.value)


def test_other_forms_are_told(checkpoint):
    """The runtime composes nothing, which all packages of Qwen have in common."""
    out, told = packaged(checkpoint)
    with Reading(out, checkpoint / "tokenizer.json") as asked:
        assert not told and asked.note() == NOT_COMPOSED
    edited(checkpoint, "tokenizer.json", {"normalizer": None})
    out, _ = packaged(checkpoint)
    with Reading(out, checkpoint / "tokenizer.json") as asked:
        assert asked.note() == ""


def test_no_end(checkpoint, monkeypatch):
    """A tokenizer that takes for ever is stopped."""
    monkeypatch.setattr(reading, "SECONDS", 0.01)
    out, _ = packaged(checkpoint)
    with Reading(out, checkpoint / "tokenizer.json") as asked:
        with pytest.raises(PackageError, match="does not come to an end"):
            asked.note()
        child = asked.child
    assert child.returncode is not None


def test_sentencepiece(tmp_path):
    """A tokenizer of the Gemma family is read alike; its class and decoder stay."""
    folder = tmp_path / "gemma"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # words of Gemma begin with their space
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"]
    every = [*special, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=every)
    tokenizer.train_from_iterator(["the sea is wide and deep"] * 9, trainer)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.save(str(folder / "tokenizer.json"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] = whole["added_tokens"][: len(special)]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    about = {"tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    out, told = packaged(folder)
    assert not told and wrong(out, folder / "tokenizer.json") == []
