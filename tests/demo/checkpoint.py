"""The demo checkpoint on disk: architecture, random start, and the files Hugging Face expects."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.demo import tokens

VOCAB_SIZE = 608  # a multiple of 32; the rows past the tokenizer's last token stay unused
CONTEXT = 4096

TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": CONTEXT,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
VISION = {
    "deepstack_visual_indexes": [0, 2, 3],
    "depth": 5,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "model_type": "qwen3_vl",
    "num_heads": 4,
    "num_position_embeddings": 64,
    "out_hidden_size": 128,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PREPROCESSOR = {
    "size": {"longest_edge": 1048576, "shortest_edge": 16384},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
TOKENIZER = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "additional_special_tokens": tokens.SPECIAL[1:],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": CONTEXT,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}


def config(tokenizer: Tokenizer) -> dict:
    """config.json, key by key as the published checkpoints have it."""
    number = tokenizer.token_to_id
    text = TEXT | {
        "bos_token_id": number("<|endoftext|>"),
        "eos_token_id": number("<|im_end|>"),
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": number("<|image_pad|>"),
        "model_type": "qwen3_vl",
        "text_config": dict(sorted(text.items())),
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": number("<|video_pad|>"),
        "vision_config": VISION,
        "vision_end_token_id": number("<|vision_end|>"),
        "vision_start_token_id": number("<|vision_start|>"),
    }


def fresh_model(tokenizer: Tokenizer, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """The architecture with random weights, in float32."""
    torch.manual_seed(seed)
    settings = Qwen3VLConfig(**config(tokenizer))
    return Qwen3VLForConditionalGeneration._from_config(settings, dtype=torch.float32)


def save_files(tokenizer: Tokenizer, folder: Path, chat_template: Path) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
    generation = {
        "bos_token_id": ends[1],
        "do_sample": False,
        "eos_token_id": ends,
        "pad_token_id": ends[1],
        "transformers_version": "4.57.0.dev0",
    }
    files = {
        "config.json": config(tokenizer),
        "generation_config.json": generation,
        "preprocessor_config.json": PREPROCESSOR,
        "tokenizer_config.json": tokens.settings(tokenizer, TOKENIZER),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    if chat_template.parent != folder:
        shutil.copyfile(chat_template, folder / "chat_template.jinja")


def save_weights(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Rounds to bfloat16 and swaps the file in whole, so that a reader never sees half of one."""
    rounded = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    partial = folder / "model.safetensors.partial"
    save_file(rounded, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, folder / "model.safetensors")
