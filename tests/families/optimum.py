"""Graphs that optimum-onnx wrote (`optimum_onnx/make.py`), with weights drawn by name."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from stock import LAYERS, VOCABULARY

GRAPHS = Path(__file__).parent / "optimum_onnx"


@dataclass(frozen=True)
class Kept:
    """A graph without its weights.

    Attributes:
        name: of the family.
        file: in `optimum_onnx`.
        heads: key heads and the width of one; None in a tower.
        expected: fused nodes that the architecture has a place for, by op type.
    """

    name: str
    file: str
    heads: tuple[int, int] | None
    expected: dict[str, int] = field(hash=False)

    @property
    def recipe(self) -> str:
        """The generic recipe that suits it."""
        return "decoder" if self.heads is not None else "vision"

    def write(self, path: Path) -> None:
        """Put the graph and its weights there."""
        shutil.copyfile(GRAPHS / self.file, path)
        model = onnx.load(path, load_external_data=False)
        with (path.parent / "weights.data").open("wb") as file:
            for tensor in model.graph.initializer:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    file.write(drawn(tensor.name, tuple(tensor.dims)).tobytes())

    def cases(self) -> Iterator[dict[str, np.ndarray]]:
        """Batch 1 and 2, with and without past, padded at the end."""
        if self.heads is None:
            for seed, batch in enumerate((1, 2)):
                rng = np.random.default_rng(seed)
                pixels = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)
                yield {"pixel_values": pixels}
            return
        shapes = (
            (1, 7, 0, 0),
            (2, 4, 0, 0),
            (2, 1, 9, 0),
            (1, 4, 6, 0),
            (1, 1, 20, 0),
            (2, 6, 0, 2),
        )
        for seed, shape in enumerate(shapes):
            yield self.decoder_case(*shape, np.random.default_rng(seed + 1))

    def decoder_case(
        self, batch: int, sequence: int, past: int, padding: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Random tokens behind a random cache."""
        assert self.heads is not None
        mask = np.ones((batch, past + sequence), np.int64)
        if padding:
            mask[0, -padding:] = 0
        feeds = {
            "input_ids": rng.integers(3, VOCABULARY, (batch, sequence)),
            "attention_mask": mask,
            "position_ids": np.broadcast_to(np.arange(past, past + sequence), (batch, sequence)),
        }
        kv_heads, width = self.heads
        for layer in range(LAYERS):
            for part in ("key", "value"):
                array = rng.standard_normal((batch, kv_heads, past, width)).astype(np.float32)
                feeds[f"past_key_values.{layer}.{part}"] = array
        return feeds


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of a usual size, by its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    spread = 1.0 / np.sqrt(max(shape[-2:])) if len(shape) > 1 else 0.2
    array = spread * rng.standard_normal(shape) + (0.0 if len(shape) > 1 else 1.0)
    return array.astype(np.float32)


def decoder(norms: int, gate: bool) -> dict[str, int]:
    """Places of a decoder."""
    return {
        "GroupQueryAttention": LAYERS,
        "RotaryEmbedding": 2 * LAYERS,
        "norms": norms * LAYERS + 1,
        "SkipSimplifiedLayerNormalization": 2 * LAYERS,
        "QuickGelu": LAYERS if gate else 0,
    }


KEPT = (
    Kept("Llama", "llama.onnx", (2, 64), decoder(2, True)),
    Kept("Qwen2", "qwen2.onnx", (2, 128), decoder(2, True)),
    Kept("Qwen3", "qwen3.onnx", (2, 128), decoder(4, True)),
    Kept("Gemma", "gemma.onnx", (1, 256), decoder(2, False)),
    Kept("Phi-3", "phi3.onnx", (4, 96), decoder(2, True)),
    Kept("ViT", "vit.onnx", None, {"MultiHeadAttention": 2, "SkipLayerNormalization": 5}),
    Kept("SigLIP", "siglip.onnx", None, {"MultiHeadAttention": 3, "SkipLayerNormalization": 5}),
)
