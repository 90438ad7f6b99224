"""Tokens that configurations name, the padding token above all, and the chat template."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from surgery.__main__ import main
from surgery.base.errors import PackageError, UserError
from surgery.base.prompts import IMAGE, turn
from surgery.base.tokens import PICTURE_TOKENS, Tokens
from surgery.engine.facts import Facts
from surgery.engine.options import Options
from surgery.jobs.build import check_configurations, question
from surgery.package.genai_config import genai_config, token_ids
from surgery.package.tokenizer import copy_tokenizer

ENDOFTEXT, IM_START, IM_END = 557, 558, 559


@pytest.fixture
def damaged(raw, tmp_path):
    """Facts of an export whose checkpoint's files can be edited."""
    manifest = json.loads((raw / "manifest.json").read_text())
    folder = shutil.copytree(manifest["checkpoint"], tmp_path / "checkpoint")
    manifest["checkpoint"] = str(folder)

    def facts(options=None, **edits):
        for key, value in edits.pop("resolved", {}).items():
            part, _, name = key.rpartition(".")
            (manifest["resolved"][part] if part else manifest["resolved"])[name] = value
        for name, change in edits.items():
            path = folder / f"{name}.json"
            if change is None:
                path.unlink()
                continue
            values = json.loads(path.read_text())
            for key, value in change.items():
                values.pop(key, None)
                if value is not ...:
                    values[key] = value
            path.write_text(json.dumps(values))
        (raw / "manifest.json").write_text(json.dumps(manifest))
        return Facts.load(raw, options or Options())

    facts.folder = folder
    return facts


PADS = {
    "as generation_config says": ({}, ENDOFTEXT, ""),
    "no generation_config": ({"generation_config": None}, ENDOFTEXT, ""),
    "none in generation_config": ({"generation_config": {"pad_token_id": ...}}, ENDOFTEXT, ""),
    "the end of a turn": (
        {"generation_config": {"pad_token_id": IM_END}},
        ENDOFTEXT,
        "names <|im_end|>, which prompts hold",
    ),
    "a picture's": (
        {"generation_config": {"pad_token_id": 569}},
        ENDOFTEXT,
        "names <|image_pad|>, which prompts hold",
    ),
    "no tokenizer's": (
        {
            "generation_config": {"pad_token_id": ...},
            "tokenizer_config": {"pad_token": ...},
        },
        ENDOFTEXT,
        "no configuration names one",
    ),
    "both the end of a turn": (
        {
            "generation_config": {"pad_token_id": IM_END},
            "tokenizer_config": {"pad_token": "<|im_end|>"},
        },
        ENDOFTEXT,
        "names <|im_end|>",
    ),
    "an object": (
        {
            "generation_config": {"pad_token_id": ...},
            "tokenizer_config": {"pad_token": {"content": "<|object_ref_start|>"}},
        },
        560,
        "",
    ),
}


@pytest.mark.parametrize(("edits", "pad", "told"), PADS.values(), ids=PADS)
def test_padding_is_in_no_prompt(damaged, edits, pad, told):
    facts = damaged(**edits)
    found, line = token_ids(facts).padding()
    assert found == genai_config(facts)["model"]["pad_token_id"] == pad
    assert told in line and bool(told) == bool(line) and "\n" not in line
    assert found not in facts.tokens.emitted()


def test_padding_when_prompts_hold_everything(damaged):
    """Then an id that the tokenizer never makes; and where there is none, no package."""
    facts = damaged(generation_config={"pad_token_id": ...})
    template = "".join(facts.tokens.added)
    (damaged.folder / "chat_template.jinja").write_text(template)
    facts = damaged()
    size = facts.text["vocab_size"]
    used = max(*facts.tokens.added.values(), *facts.tokens.plain)
    if used + 1 < size:
        assert token_ids(facts).padding()[0] == used + 1
    facts = damaged(resolved={"text_config.vocab_size": used + 1})
    with pytest.raises(PackageError, match="no id is left for padding"):
        token_ids(facts).padding()


WRONG = {
    **{
        f"{key} {value}": (
            {"resolved": {key: value}},
            f"{key} is {value}, the tokenizer has {token}",
        )
        for key, token in PICTURE_TOKENS.items()
        for value in (1, 10**6, -1, None, "x")
    },
    "an end beyond the table": (
        {"generation_config": {"eos_token_id": [IM_END, 10**9]}},
        "eos_token_id is [559, 1000000000], needs an integer from 0 to 607",
    ),
    "an end that is negative": ({"generation_config": {"eos_token_id": -1}}, "eos_token_id is -1"),
    "no ends": ({"generation_config": {"eos_token_id": []}}, "eos_token_id is []"),
    "an end of another kind": ({"generation_config": {"eos_token_id": "x"}}, "eos_token_id is 'x'"),
    "an end without a token": (
        {"generation_config": {"eos_token_id": 607}},
        "eos_token_id 607 is no token of the tokenizer",
    ),
    "temperature": ({"generation_config": {"temperature": "x"}}, "temperature is 'x'"),
    "top_k": ({"generation_config": {"top_k": -5}}, "top_k is -5"),
    "top_p": ({"generation_config": {"top_p": 2}}, "top_p is 2"),
    "penalty": ({"generation_config": {"repetition_penalty": [1]}}, "repetition_penalty is [1]"),
    "do_sample": ({"generation_config": {"do_sample": "yes"}}, "do_sample is 'yes'"),
    "a list of tokens": ({"tokenizer": {"added_tokens": 3}}, "added_tokens is 3, needs a list"),
    "no tokens": ({"tokenizer": {"model": ...}}, "model is missing"),
    "patch_size 14": ({"preprocessor_config": {"patch_size": 14}}, "patch_size is 14"),
    "patch_size 0": ({"preprocessor_config": {"patch_size": 0}}, "patch_size is 0"),
    "merge_size 3": ({"preprocessor_config": {"merge_size": 3}}, "merge_size is 3"),
    "temporal 0": ({"preprocessor_config": {"temporal_patch_size": 0}}, "temporal_patch_size is 0"),
    "std 0": ({"preprocessor_config": {"image_std": [0.5, 0, 0.5]}}, "image_std is [0.5, 0, 0.5]"),
    "two means": ({"preprocessor_config": {"image_mean": [0.5, 0.5]}}, "image_mean is [0.5, 0.5]"),
    "no mean": ({"preprocessor_config": {"image_mean": ...}}, "image_mean is missing"),
    "do_resize": ({"preprocessor_config": {"do_resize": False}}, "do_resize is false"),
    **{
        f"size {size}": ({"preprocessor_config": {"size": size}}, "size")
        for size in (
            *(3, [], "x", {"shortest_edge": 100}, {"height": 3, "width": 3}),
            {"shortest_edge": 65536, "longest_edge": 4096},
            {"shortest_edge": 0, "longest_edge": 4096},
            {"shortest_edge": 65536, "longest_edge": 1 << 62},
            {"shortest_edge": 1.5, "longest_edge": 4096},
        )
    },
}


@pytest.mark.parametrize(("edits", "message"), WRONG.values(), ids=WRONG)
def test_configurations_that_no_package_can_have(damaged, edits, message):
    with pytest.raises(UserError) as found:
        check_configurations(damaged(**edits))
    assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("value", ["{", "[]", "null", b"\xff", '{"a": NaN}', '{"a":' * 500])
@pytest.mark.parametrize(
    "name",
    [
        *("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
        "tokenizer.json",
    ],
)
def test_files_of_another_kind(damaged, name, value):
    facts = damaged()
    (damaged.folder / name).write_bytes(value if isinstance(value, bytes) else value.encode())
    with pytest.raises(PackageError, match=name):
        check_configurations(facts)


TEMPLATES = {
    "its own file alone": ("A", None, "A"),
    "two that agree": ("A", "A", "A"),
    "two that differ": ("A", "B", "A"),
    "in the configuration": (None, "B", "B"),
    "several named ones": (
        None,
        [{"name": "x", "template": "X"}, {"name": "default", "template": "D"}],
        "D",
    ),
    "its own file and named ones": ("A", [{"name": "default", "template": "D"}], "A"),
}


NO_TEMPLATE = {
    "an empty file": (" \n", ..., "chat_template.jinja: the chat template is empty"),
    "an empty text": (None, "", "tokenizer_config.json: the chat template is empty"),
    "none of the name": (None, [{"name": "x", "template": "X"}], "none that is named default"),
    "an empty list": (None, [], "none that is named default"),
}


@pytest.mark.parametrize(("own", "configured", "words"), NO_TEMPLATE.values(), ids=NO_TEMPLATE)
def test_a_template_that_says_nothing(damaged, own, configured, words):
    """A package with it would answer no question."""
    damaged(tokenizer_config={"chat_template": configured})
    folder = damaged.folder
    path = folder / "chat_template.jinja"
    path.unlink() if own is None else path.write_text(own)
    with pytest.raises(PackageError, match=words):
        Tokens.read(folder, PackageError)


@pytest.mark.parametrize(("own", "configured", "taken"), TEMPLATES.values(), ids=TEMPLATES)
def test_one_chat_template_a_package(damaged, tmp_path, own, configured, taken):
    """The one that transformers takes; the runtime takes it too, since there is no other."""
    facts = damaged(tokenizer_config={"chat_template": ... if configured is None else configured})
    path = damaged.folder / "chat_template.jinja"
    path.unlink() if own is None else path.write_text(own)
    out = tmp_path / "package"
    out.mkdir()
    copy_tokenizer(facts.tokens, out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (out / "chat_template.jinja").read_text() == taken
    assert config.get("chat_template", taken) == taken
    assert Tokens.read(out, PackageError).template == taken


def test_a_vocabulary_that_is_another_file(damaged, tmp_path):
    facts = damaged()
    (damaged.folder / "vocab.json").symlink_to("/etc/hostname")
    (tmp_path / "package").mkdir()
    with pytest.raises(PackageError, match=r"vocab.json: is a link out of the folder"):
        copy_tokenizer(facts.tokens, tmp_path / "package")


@pytest.mark.parametrize("mark", ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>"])
def test_marks_of_pictures_in_a_question(mark):
    with pytest.raises(UserError, match="which the runtime takes for a picture"):
        turn(f"what is {mark}?", IMAGE)


@pytest.mark.parametrize(
    "words",
    [
        *(("--max-length", str(n)) for n in (1, -5, 10_000_000, 1 << 63)),
        *(("--image-size", str(n)) for n in (0, -32, 1 << 40)),
    ],
)
def test_absurd_options(refused, raw, tmp_path, words):
    assert words[0] in refused(main, "-i", raw, "-o", tmp_path / "package", *words)


def test_a_context_beyond_the_checkpoints(damaged, capsys):
    check_configurations(damaged(Options(max_length=5000)))
    assert "made for 4096 positions" in capsys.readouterr().err
    check_configurations(damaged(Options(max_length=4096)))
    assert not capsys.readouterr().err


def test_weights_written_anew_under_the_same_header(raw, tmp_path):
    from surgery.base.shards import sample_digest

    manifest = json.loads((raw / "manifest.json").read_text())
    folder = shutil.copytree(manifest["checkpoint"], tmp_path / "checkpoint")
    shard = folder / "model.safetensors"
    manifest |= {"checkpoint": str(folder), "weights": str(folder)}
    manifest["samples"] = {shard.name: sample_digest(shard)}
    (raw / "manifest.json").write_text(json.dumps(manifest))
    Facts.load(raw, Options()).check_unchanged()
    data = bytearray(shard.read_bytes())
    data[-4096:] = bytes(4096)
    shard.write_bytes(data)
    with pytest.raises(PackageError, match=r"changed since the export"):
        Facts.load(raw, Options()).check_unchanged()
    for words in (["--only", "fold"], ["explain", "fold"]):
        assert main([*words, "-i", str(raw)]) == 2


MANIFESTS = [
    ("source", 3), ("checkpoint", None), ("weights", []), ("headers", []), ("headers", {"a": 3}),
    ("config", "x"), ("resolved", {}), ("resolved", []), ("tied", "yes"), ("samples", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), MANIFESTS, ids=repr)
def test_a_manifest_of_another_kind(refused, raw, tmp_path, key, value):
    manifest = json.loads((raw / "manifest.json").read_text())
    manifest[key] = value
    (raw / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json: " in refused(main, "-i", raw, "-o", tmp_path / "package")


COPIED = ("merges.txt", "vocab.json", "chat_template.jinja", "generation_config.json")


@pytest.mark.parametrize("name", COPIED)
def test_a_link_out_of_the_checkpoint(damaged, tmp_path, name):
    """The package must not hold what lies elsewhere on the disk."""
    (tmp_path / "secret").write_text('{"secret": 1}')
    (damaged.folder / name).unlink(missing_ok=True)
    (damaged.folder / name).symlink_to(tmp_path / "secret")
    (tmp_path / "package").mkdir()
    with pytest.raises(PackageError, match=f"{name}: is a link out of the folder"):
        copy_tokenizer(damaged().tokens, tmp_path / "package")


def test_links_into_the_cache_of_the_hub(damaged, tmp_path):
    """There every file is a link, and all lead to one folder."""
    blobs, snapshot = tmp_path / "blobs", damaged.folder
    snapshot.rename(blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    (tmp_path / "package").mkdir()
    copy_tokenizer(damaged().tokens, tmp_path / "package")
    assert (tmp_path / "package" / "generation_config.json").is_file()


def test_a_template_that_does_not_parse(damaged):
    (damaged.folder / "chat_template.jinja").write_text("{{ messages")
    with pytest.raises(PackageError, match="chat template, line 1"):
        check_configurations(damaged())


@pytest.mark.parametrize("token", [-1, 10**9])
def test_a_first_token_outside_the_table(damaged, token):
    with pytest.raises(PackageError, match=r"generation_config.json: bos_token_id is"):
        genai_config(damaged(generation_config={"bos_token_id": token}))


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "-o", "--force"])
def test_the_closing_hint_can_be_pasted(damaged, name):
    words = shlex.split(question(Path(name), damaged()))
    assert words[:4] == ["python", "-m", "surgery", "chat"]
    assert Path(words[4]) == Path(name) and not words[4].startswith("-")


UNREADABLE = {
    "ids beyond": ("tokenizer", {"model": {"vocab": {"a": 1 << 40}}}, "vocab"),
    "ids below": ("tokenizer", {"model": {"vocab": {"a": -1}}}, "vocab"),
    "class": ("tokenizer_config", {"tokenizer_class": 5}, "tokenizer_class"),
    "no class": ("tokenizer_config", {"tokenizer_class": None}, "tokenizer_class"),
    "length": ("tokenizer_config", {"model_max_length": "x"}, "model_max_length"),
    "decoder": ("tokenizer_config", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
}
"""Values with which onnxruntime-genai would not load the package."""


@pytest.mark.parametrize(("name", "change", "key"), UNREADABLE.values(), ids=UNREADABLE)
def test_values_that_the_runtime_does_not_read(damaged, name, change, key):
    damaged(**{name: change})
    with pytest.raises(PackageError, match=rf"{name}.json: (model\.)?{key} is .*needs"):
        Tokens.read(damaged.folder, PackageError)
