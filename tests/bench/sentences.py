"""Sentence embeddings of a trained encoder, quantized by `apply -t int4`, beside the float graph's.

    python tests/bench/sentences.py --text /usr/share/games/fortunes/literature

The encoder is all-MiniLM-L6-v2 (`tests/families/elsewhere.py` says which package brings it): no
method here was developed on it. Sentences are the entries of the text file; an embedding is the
mean over the tokens of a sentence, divided by its norm. Columns: bits of a linear weight, the mean
and least cosine between quantized and float embeddings, and the share of sentences whose nearest
other sentence stays the same. Both graphs run in onnxruntime, activations at accuracy level 4.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import transformers
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "families")]

from elsewhere import Sentences
from export import exported

from surgery.engine.options import Options
from surgery.jobs.apply import apply

OPTIONS: dict[str, dict[str, Any]] = {
    "symmetric, blocks of 32": {"symmetric": True, "block_size": 32, "bits": 5.0},
    "zero points, blocks of 32": {"block_size": 32, "bits": 5.13},
    "fast --bits 4.5": {"bits": 4.5},
    "fast": {},
    "fast --bits 5": {"bits": 5.0},
    "8 bits": {"bits": 8.25},
    "balanced": {"preset": "balanced"},
    "balanced --bits 4.75": {"preset": "balanced", "bits": 4.75},
    "best": {"preset": "best"},
}
"""Options of `apply`; presets that calibrate do so on other sentences of the same text."""
CALIBRATION = 512
"""Sentences that calibrate."""


def main() -> None:
    """Print a row for each set of options."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--text", type=Path, required=True, help="entries between lines with a %%")
    p.add_argument("--sentences", type=int, default=256)
    p.add_argument("--cache", type=Path, default=Path("build/bench"))
    args = p.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    encoder = Sentences()
    graph = exported(encoder.name, encoder, args.cache).path
    texts = args.text.read_text(encoding="utf-8", errors="replace").split("\n%\n")
    texts = [text.replace("\n", " ").strip() for text in texts]
    texts = [text for text in texts if 20 < len(text) < 600]
    others, texts = texts[args.sentences :][:CALIBRATION], texts[: args.sentences]
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.package.path.parent)
    examples = written(others, tokenizer, args.cache / "sentences")
    exact = embed(graph, texts, tokenizer)
    table = Table(title=f"{len(texts)} sentences")
    for heading in ("", "bits", "mean cosine", "least", "same neighbour"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, options in OPTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            own = {"calibrate": str(examples)} if "preset" in options else {}
            apply(graph, out, "any", Options(text_precision="int4", **options, **own),
                  tell=lambda record, words: None)  # fmt: skip
            told = json.loads((out / "quantization.json").read_text(encoding="utf-8"))
            (bits,) = (graph["bits"] for graph in told.values())
            found = embed(next(out.glob("*.onnx")), texts, tokenizer)
        cosine = (found * exact).sum(-1)
        same = (nearest(found) == nearest(exact)).mean()
        figures = f"{bits:.2f}", f"{cosine.mean():.4f}", f"{cosine.min():.4f}", f"{same:.1%}"
        table.add_row(name, *figures)
    Console(width=100).print(table)


def written(texts: list[str], tokenizer: Any, folder: Path) -> Path:
    """A folder with a file of inputs for each length, so that no row is padded."""
    folder.mkdir(exist_ok=True)
    rows: dict[int, list[list[int]]] = {}
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        rows.setdefault(len(ids), []).append(ids)
    for length, group in rows.items():
        ids = np.array(group, np.int64)
        np.savez(folder / f"{length}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return folder


def embed(path: Path, texts: list[str], tokenizer: Any) -> Any:
    """Embeddings [N, H] of length 1."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = []
    for start in range(0, len(texts), 16):
        found = tokenizer(texts[start : start + 16], padding=True, return_tensors="np")
        mask = found["attention_mask"].astype(np.int64)
        feeds = {"input_ids": found["input_ids"].astype(np.int64), "attention_mask": mask}
        (features,) = session.run(None, feeds)
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        parts.append(mean / np.linalg.norm(mean, axis=-1, keepdims=True))
    return np.concatenate(parts)


def nearest(embeddings: Any) -> Any:
    """The number of the sentence that is most like each."""
    likeness = embeddings @ embeddings.T
    np.fill_diagonal(likeness, -1)
    return likeness.argmax(1)


if __name__ == "__main__":
    main()
