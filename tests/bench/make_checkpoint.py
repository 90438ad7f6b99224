"""A checkpoint of random weights in the shape of a published Qwen3-VL, to measure with.

    python tests/bench/make_checkpoint.py OUT --model 4B [--layers 4] [--vision-layers 6] [--words]

Names and shapes are those of the transformers model built without weights, the files those of
the Hugging Face layout: bfloat16 safetensors shards, an index, the configuration, the
preprocessor's, the generation defaults, and a tokenizer with its chat template. Weights are
normal with deviation 0.02, norms 1 + that; the same seed gives the same bytes.

A few MB of random numbers are made once and written again and again from other offsets, so
writing goes at the speed of the disk and takes no memory. The values are good for timing, sizes
and round trips; a statement about quality needs a trained model. With `--words`, answers are words,
and so come back from their text as the same tokens, as those of a trained model do.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

DEMO = Path(__file__).resolve().parents[2] / "export_min" / "demo"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)

DEVIATION = 0.02
PIECE = 1 << 21  # weights written at a time, 4 MB
LOUDER = 8  # times what other rows of the head are, so that one of these is the likeliest token

SMALL_VISION = {
    "hidden_size": 1024,
    "depth": 24,
    "num_heads": 16,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE_VISION = {
    "hidden_size": 1152,
    "depth": 27,
    "num_heads": 16,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
EXPERTS = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
}
# text (hidden, layers, heads, kv heads, intermediate), experts, tied embeddings, vision
MODELS: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any], bool, dict[str, Any]]] = {
    "2B": ((2048, 28, 16, 8, 6144), {}, True, SMALL_VISION),
    "4B": ((2560, 36, 32, 8, 9728), {}, True, SMALL_VISION),
    "8B": ((4096, 36, 32, 8, 12288), {}, False, LARGE_VISION),
    "32B": ((5120, 64, 64, 8, 25600), {}, False, LARGE_VISION),
    "30B-A3B": ((2048, 48, 32, 4, 6144), EXPERTS, False, LARGE_VISION),
    "235B-A22B": (
        (4096, 94, 64, 4, 12288),
        EXPERTS | {"moe_intermediate_size": 1536},
        False,
        LARGE_VISION,
    ),
}

# The token behind each id of the configuration, and its id in Qwen's own tokenizer.
SPECIAL_TOKENS = {
    "image_token_id": ("<|image_pad|>", 151655),
    "video_token_id": ("<|video_pad|>", 151656),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
    "bos_token_id": ("<|endoftext|>", 151643),
    "eos_token_id": ("<|im_end|>", 151645),
}


def main() -> None:
    """Write a checkpoint and say how large it is and how fast it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--model", choices=MODELS, default="2B")
    parser.add_argument("--layers", type=int, help="text layers, all by default")
    parser.add_argument("--vision-layers", type=int, help="vision layers, all by default; >= 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=DEMO, help="folder to copy it from")
    parser.add_argument("--words", action="store_true", help="answers are made of whole words")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest shard, 1e9 bytes")
    args = parser.parse_args()

    start = time.perf_counter()
    size = make_checkpoint(
        args.out,
        args.model,
        layers=args.layers,
        vision_layers=args.vision_layers,
        seed=args.seed,
        tokenizer=args.tokenizer,
        shard_bytes=int(args.shard_gb * 1e9),
        words=args.words,
    )
    seconds = time.perf_counter() - start
    print(f"{args.out}: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / 1e9 / seconds:.2f} GB/s")


def make_checkpoint(
    out: Path,
    model: str,
    *,
    layers: int | None = None,
    vision_layers: int | None = None,
    seed: int = 0,
    tokenizer: Path = DEMO,
    shard_bytes: int = 5_000_000_000,
    words: bool = False,
) -> int:
    """Write the checkpoint.

    Args:
        out: folder to write, new or empty.
        model: a key of `MODELS`.
        layers: text layers; all of the published ones when None.
        vision_layers: vision layers, at least 3; all of the published ones when None.
        seed: the same seed gives the same bytes.
        tokenizer: folder whose tokenizer and chat template are copied, where it has them. The
            configuration names the ids that this tokenizer gives the special tokens.
        shard_bytes: largest shard; a larger tensor has a shard to itself.
        words: whether the head prefers tokens that are whole words; the tokenizer has to have some.

    Returns:
        Bytes of weights.

    Raises:
        FileExistsError: when `out` holds files.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    ids = copy_tokenizer(tokenizer, out)
    config = make_config(model, ids, layers=layers, vision_layers=vision_layers)
    write_json(out / "config.json", config)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
    write_json(out / "generation_config.json", make_generation_config(ids))
    size = write_weights(out, checkpoint_shapes(config), seed, shard_bytes)
    if words:
        prefer(out, words_of(tokenizer))
    return size


PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def copy_tokenizer(source: Path, out: Path) -> dict[str, int]:
    """Copy the tokenizer's files, and find the id of each special token in it.

    Tokens it lacks, or all where there is no tokenizer, keep the ids of Qwen's own.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    known: dict[str, int] = {}
    if (out / "tokenizer.json").is_file():
        tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
        known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {key: known.get(token, own) for key, (token, own) in SPECIAL_TOKENS.items()}


def make_config(
    model: str,
    ids: dict[str, int],
    *,
    layers: int | None = None,
    vision_layers: int | None = None,
) -> dict[str, Any]:
    """The `config.json` of a published model, perhaps with fewer layers."""
    (hidden, published_layers, heads, kv_heads, intermediate), experts, tied, vision = MODELS[model]
    kind = "qwen3_vl_moe" if experts else "qwen3_vl"
    depth = vision_layers or vision["depth"]
    deepstack = [index * depth // vision["depth"] for index in vision["deepstack_visual_indexes"]]
    return {
        "architectures": [
            "Qwen3VLMoeForConditionalGeneration" if experts else "Qwen3VLForConditionalGeneration"
        ],
        "model_type": kind,
        **{key: value for key, value in ids.items() if key not in ("bos_token_id", "eos_token_id")},
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["bos_token_id"],
            "dtype": "bfloat16",
            "eos_token_id": ids["eos_token_id"],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": DEVIATION,
            "intermediate_size": intermediate,
            "max_position_embeddings": 262144,
            "model_type": f"{kind}_text",
            "num_attention_heads": heads,
            "num_hidden_layers": layers or published_layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 151936,
            **experts,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": DEVIATION,
            "model_type": kind,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
            "depth": depth,
            "deepstack_visual_indexes": deepstack,
        },
    }


def make_generation_config(ids: dict[str, int]) -> dict[str, Any]:
    """The published generation defaults."""
    return {
        "bos_token_id": ids["bos_token_id"],
        "pad_token_id": ids["bos_token_id"],
        "do_sample": True,
        "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]],
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "transformers_version": "4.56.0",
    }


def checkpoint_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint, in the order of the model.

    Two things are stored otherwise than transformers 5 holds them: a tied head is left out, and
    experts are transposed, `[experts, in, out]` (huggingface/transformers#43201).
    """
    auto = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(auto)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    for name, shape in shapes.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            shapes[name] = (shape[0], shape[2], shape[1])
    return shapes


def write_weights(
    out: Path, shapes: dict[str, tuple[int, ...]], seed: int, shard_bytes: int
) -> int:
    """Write the shards and, of several, their index; returns the bytes of all weights."""
    rng = np.random.default_rng(seed)
    # Twice as long as a piece, so that a piece may start anywhere in the first half.
    normal = rng.standard_normal(2 * PIECE, np.float32) * np.float32(DEVIATION)
    weights = normal.astype(ml_dtypes.bfloat16)
    norms = (normal + 1).astype(ml_dtypes.bfloat16)

    shards = list(split(shapes, shard_bytes))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        one = "model.safetensors"
        name = one if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys(shard, name))
        with open(out / name, "xb", buffering=0) as file:
            file.write(safetensors_header(shard))
            for tensor, shape in shard.items():
                source = norms if is_norm(tensor) else weights
                write_tensor(file, tensor, int(np.prod(shape)), source, seed)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(out / "model.safetensors.index.json", index)
    return total


def words_of(tokenizer: Path) -> list[int]:
    """Tokens of a byte-level vocabulary that are a space and a word: text keeps them apart."""
    text = (tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    entries: dict[str, int] = json.loads(text)["model"]["vocab"]
    return [number for token, number in entries.items() if re.fullmatch("Ġ[a-z]{3,}", token)]


def prefer(out: Path, tokens: list[int]) -> None:
    """Make the rows of some tokens longer, in the embedding and in a head of its own."""
    for shard in sorted(out.glob("*.safetensors")):
        with shard.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
            for name, entry in entries.items():
                if name not in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
                    continue
                start, width = 8 + length + entry["data_offsets"][0], 2 * entry["shape"][1]
                for token in tokens:
                    file.seek(start + token * width)
                    row = np.frombuffer(file.read(width), ml_dtypes.bfloat16)
                    file.seek(start + token * width)
                    file.write((row * ml_dtypes.bfloat16(LOUDER)).tobytes())


def split(
    shapes: dict[str, tuple[int, ...]], shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Cut the tensors into shards, in order."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if shard and size + nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def safetensors_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The head of a safetensors file: the length of its JSON (8 bytes), and the JSON."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    return len(text).to_bytes(8, "little") + text


def is_norm(name: str) -> bool:
    """Whether a tensor multiplies normalised values, so that 1 is its neutral value."""
    return "norm" in name and name.endswith(".weight")


def write_tensor(file: Any, name: str, count: int, source: Any, seed: int) -> None:
    """Write `count` weights, each piece of them from another offset of `source`."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    raw = memoryview(source.view(np.uint8))
    while count:
        piece = min(count, PIECE)
        start = 2 * int(rng.integers(PIECE))
        left = raw[start : start + 2 * piece]
        while left:
            left = left[file.write(left) :]  # an unbuffered file may take less
        count -= piece


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as Hugging Face does."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
