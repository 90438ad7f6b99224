"""What makes a decoder that others exported a package, and why some are none."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from weighted_graph import write

from surgery.__main__ import main
from surgery.base.errors import PackageError
from surgery.base.tokens import Tokens
from surgery.match.caches import caches, numbered
from surgery.package.decoder_graph import DecoderGraph, Unfit

GRAPH = """<ir_version: 8, opset_import: ["": 17]>
g (int64[batch,sequence] input_ids, int64[batch,total] attention_mask, float[258,4] w_table,
   float[4,258] w_head, float[batch,1,past,4] old_k_0_x, float[batch,1,past,4] old_v_0_x)
=> (float[batch,sequence,258] logits, float[batch,1,total,4] new_k_0_x,
    float[batch,1,total,4] new_v_0_x)
<int64[1] first = {1}, int64[1] two = {2}> {
  h = Gather(w_table, input_ids)
  rows = Unsqueeze(h, first)
  new_k_0_x = Concat<axis = 2>(old_k_0_x, rows)
  new_v_0_x = Concat<axis = -2>(old_v_0_x, rows)
  sum_k = ReduceSum<keepdims = 0>(new_k_0_x, two)
  sum_v = ReduceSum<keepdims = 0>(new_v_0_x, two)
  product = Mul(sum_k, sum_v)
  mixed = Add(h, product)
  logits = MatMul(mixed, w_head)
}"""
"""A decoder whose cache is joined by Concat and read by no attention."""
WORDS = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2,
          "hidden_size": 4, "vocab_size": 258, "eos_token_id": 1, "pad_token_id": 0,
          "max_position_embeddings": 32}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A graph with weights, its configuration and its tokenizer."""
    home = tmp_path / "model"
    home.mkdir()
    write(GRAPH, home / "model.onnx")
    (home / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(WORDS[:2])
    tokenizer.save(str(home / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (home / "tokenizer_config.json").write_text(json.dumps(about))
    return home


def applied(folder, *words, recipe="decoder"):
    """The exit status of `apply`, and its output."""
    out = folder.parent / "out"
    words = ["apply", "-i", str(folder / "model.onnx"), "-o", str(out), "--recipe", recipe, *words]
    return main(words), out


def written(out):
    """genai_config.json of a package."""
    return json.loads((out / "genai_config.json").read_text(encoding="utf-8"))


def edited(folder, name, **changes):
    """Change a JSON file; `...` removes a key."""
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_package_runs(folder):
    """Names are the graph's, a cache that is copied is not shared, and the tokens are equal."""
    status, out = applied(folder)
    assert status == 0
    config = written(out)
    decoder = config["model"].pop("decoder")
    assert decoder["inputs"] == {
        "input_ids": "input_ids", "attention_mask": "attention_mask",
        "past_key_names": "old_k_%d_x", "past_value_names": "old_v_%d_x",
    }  # fmt: skip
    assert decoder["outputs"]["present_value_names"] == "new_v_%d_x"
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (4, 1)
    assert not config["search"]["past_present_share_buffer"]
    assert config["model"] == {
        "type": "llama", "vocab_size": 258, "context_length": 32, "bos_token_id": 1,
        "pad_token_id": 0, "eos_token_id": [1],
    }  # fmt: skip
    session = ort.InferenceSession(folder / "model.onnx")
    model = og.Model(str(out))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=12, do_sample=False)
    generator = og.Generator(model, params)
    prompt = [3, 7, 9]
    generator.append_tokens(np.array([prompt], np.int32))
    nothing = np.zeros((1, 1, 0, 4), np.float32)
    tokens, past = np.array([prompt]), [nothing, nothing]
    while not generator.is_done():
        names = ("old_k_0_x", "old_v_0_x")
        mask = np.ones((1, past[0].shape[2] + tokens.shape[1]), np.int64)
        feeds = {"input_ids": tokens, "attention_mask": mask, **dict(zip(names, past, strict=True))}
        given = {x.name for x in session.get_inputs()}
        feeds = {name: array for name, array in feeds.items() if name in given}
        logits, *past = session.run(None, feeds)
        tokens = np.array([[int(logits[0, -1].argmax())]])
        generator.generate_next_token()
        assert generator.get_next_tokens()[0] == tokens[0, 0]


def test_other_folder(folder, tmp_path):
    """`--config` names the folder; without, and beside no config.json, there is a line."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(home / name)
    status, out = applied(folder, "--config", str(home))
    assert status == 0 and written(out)["model"]["type"] == "llama"
    assert (out / "tokenizer.json").is_file()


def test_without_configuration(folder, capsys):
    """A plain graph stays one: one line says what is missing."""
    (folder / "config.json").unlink()
    status, out = applied(folder)
    assert status == 0 and not (out / "genai_config.json").exists()
    assert "no genai_config.json: no config.json beside the graph" in capsys.readouterr().err
    assert not (out / "tokenizer.json").exists() and (out / "model.onnx").is_file()


def test_other_recipe(folder, capsys):
    """Only the recipe for decoders makes packages."""
    status, out = applied(folder, recipe="any")
    assert status == 0 and not (out / "genai_config.json").exists()
    assert "genai_config" not in capsys.readouterr().err


def test_unknown_type(folder, capsys):
    """A type that the runtime lacks is its type for any decoder."""
    edited(folder, "config.json", model_type="brandnew")
    status, out = applied(folder)
    assert status == 0 and written(out)["model"]["type"] == "decoder"
    assert "has no type brandnew" in capsys.readouterr().err
    assert og.Model(str(out)).type == "decoder"


def test_part_about_text(folder):
    """Models with pictures have an inner configuration."""
    inner = {**CONFIG, "model_type": "gemma3_text"}
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "text_config": inner}))
    status, out = applied(folder)
    assert status == 0 and written(out)["model"]["type"] == "gemma3_text"


def test_generation(folder):
    """Ends and sampling are those of generation_config.json; --max-length bounds the context."""
    generation = {"eos_token_id": [1, 5], "do_sample": True, "top_k": 999, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    _, out = applied(folder, "--max-length", "16")
    config = written(out)
    assert config["model"]["eos_token_id"] == [1, 5]
    assert config["model"]["context_length"] == config["search"]["max_length"] == 16
    assert config["search"]["do_sample"] and config["search"]["top_k"] == 258
    assert (out / "generation_config.json").is_file()


MISSING = {
    "another model's": ("config.json", {"num_hidden_layers": 3}, "has 3 layers"),
    "no end": ("config.json", {"eos_token_id": ...}, "names an eos_token_id"),
}


@pytest.mark.parametrize(("name", "changes", "told"), MISSING.values(), ids=MISSING)
def test_not_enough(folder, capsys, name, changes, told):
    """One line, and the graph alone."""
    edited(folder, name, **changes)
    status, out = applied(folder)
    assert status == 0 and not (out / "genai_config.json").exists()
    assert told in capsys.readouterr().err


def test_no_tokenizer(folder, capsys):
    """A package needs one."""
    (folder / "tokenizer.json").unlink()
    status, out = applied(folder)
    assert status == 0 and not (out / "genai_config.json").exists()
    assert "no tokenizer.json beside config.json" in capsys.readouterr().err


BROKEN = {
    "an end outside": {"eos_token_id": 999},
    "an end of another kind": {"eos_token_id": "x"},
    "layers of another kind": {"num_hidden_layers": "x"},
    "no type": {"model_type": 5},
    "no length": {"max_position_embeddings": -1},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_broken(folder, capsys, changes):
    """One line, status 2, nothing written."""
    edited(folder, "config.json", **changes)
    status, out = applied(folder)
    assert status == 2 and not out.exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "config.json" in line and next(iter(changes)) in line


READ_OTHERWISE = {
    "words of another kind": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    "spaces in front": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True,
                                          "trim_offsets": True, "use_regex": True}},
}  # fmt: skip


@pytest.mark.parametrize("change", READ_OTHERWISE.values(), ids=READ_OTHERWISE)
def test_read_otherwise(folder, capsys, change):
    """No package whose prompts the runtime would read as other tokens."""
    edited(folder, "tokenizer.json", **change)
    status, out = applied(folder)
    assert status == 2 and not out.exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{folder / 'tokenizer.json'}: onnxruntime-genai" in line


def test_bytes_called_llama(folder, capsys):
    """The class with which the runtime reads the bytes is written, and said."""
    edited(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    status, out = applied(folder)
    assert status == 0
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "LlamaTokenizer became PreTrainedTokenizerFast" in capsys.readouterr().err


def test_chat_template(folder, capsys):
    """A broken one is refused; to have none is the way of base models, and is said."""
    assert applied(folder)[0] == 0 and "no chat template" in capsys.readouterr().err
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    status, _ = applied(folder, "--force")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and "chat template, line 1" in line


def test_no_such_folder(folder, tmp_path, capsys):
    """A folder that is named must have a config.json."""
    status, out = applied(folder, "--config", str(tmp_path / "nowhere"))
    assert status == 2 and not out.exists()
    assert "config.json is missing" in capsys.readouterr().err


UNFIT = {
    "no mask": (("int64[batch,total] attention_mask, ", ""), "no input attention_mask"),
    "a static length": (("sequence] input_ids", "8] input_ids"), "static length 8"),
    "a static cache": (("1,past,4] old_k", "1,64,4] old_k"), "old_k_0_x has the static length 64"),
    "heads unknown": (("1,past,4] old_k", "n,past,4] old_k"), "no fixed number of heads"),
    "embeddings": (("input_ids", "inputs_embeds"), "no input input_ids"),
    "another input": (
        ("int64[batch,total] att", "float[1] audio, int64[batch,total] att"), "no input audio"
    ),
    "other names": (("old_k_0_x", "old_k_b_x"), "not numbered by layer"),
    "no logits": (("logits", "scores"), "no output logits"),
    "no cache": (("<axis = -2>(old_v_0_x, rows)", "<axis = 2>(rows, old_v_0_x)"), "no cache"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), UNFIT.values(), ids=UNFIT)
def test_unfit(tmp_path, change, reason):
    """What the runtime could not drive, with the reason."""
    assert change[0] in GRAPH
    write(GRAPH.replace(*change), tmp_path / "model.onnx")
    with pytest.raises(Unfit, match=reason):
        DecoderGraph.read(ir.load(tmp_path / "model.onnx"))


def test_numbered():
    """One number runs from 0 in order; others stay."""
    assert numbered(["a2.0.key", "a2.1.key"]) == "a2.%d.key"
    assert numbered(["past_0"]) == "past_%d"
    assert numbered(["p.0.7", "p.1.7", "p.2.7"]) == "p.%d.7"
    for names in (
        ["a.1", "a.2"],
        ["a.0", "b.1"],
        ["a.0.0", "a.1.1"],
        ["a", "a"],
        [],
        ["a.1", "a.0"],
    ):
        assert numbered(names) is None


def test_keys_and_values(tmp_path):
    """Where no op tells them apart, by the numbers in their names, or else by halves."""
    write(GRAPH, tmp_path / "model.onnx")
    keys, values = caches(ir.load(tmp_path / "model.onnx"))
    assert [c.past.name for c in keys] == ["old_k_0_x"]
    assert [c.past.name for c in values] == ["old_v_0_x"]


FRAMES = {
    "a variable": ("{{ eos_token }}", {}, {"eos_token": "<end>"}),
    "the tokenizer": ("x", {"special_tokens": {"<end>": {}}}, {}),
    "a sequence": ("x", {"processors": [{}, {"special_tokens": {"<end>": {}}}]}, {}),
}


@pytest.mark.parametrize(("template", "processor", "config"), FRAMES.values(), ids=FRAMES)
def test_padding_is_in_no_prompt(folder, template, processor, config):
    """Tokens that a template writes as variables, or that the tokenizer adds, are in prompts."""
    (folder / "chat_template.jinja").write_text(template)
    edited(folder, "tokenizer.json", post_processor=processor)
    edited(folder, "tokenizer_config.json", **config)
    tokens = Tokens.read(folder, PackageError)
    assert tokens.emitted() == {1: "<end>"}
    assert tokens.padding([("config.json", 1)], 16)[0] == 0
