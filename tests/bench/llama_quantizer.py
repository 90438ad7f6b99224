"""llama.cpp's own quantizer on a whole model, which chooses a type for each tensor by itself.

`llama-quantize` replaces types whose blocks of 256 do not divide a row. It can weigh errors by what
`llama-imatrix` measured on a text: the mean square of each input channel.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHUNKS = 32


def quantized(
    source: Path, weights: Mapping[str, Any], kind: str, tools: Path, text: Path | None = None
) -> dict[str, tuple[Any, int]]:
    """Quantize some matrices of a model, and unpack them.

    Args:
        source: a GGUF file with the model's description and all of its tensors.
        weights: float32 [N, K] by tensor name, in place of those of the file.
        kind: a type of the tool, such as Q4_K_M.
        tools: folder with `llama-quantize`, and `llama-imatrix` where there is a text.
        text: what `llama-imatrix` reads, up to `CHUNKS` times 512 tokens; None for no weights.

    Returns:
        Each matrix as the tool's runtime multiplies with it, and its bytes.
    """
    with tempfile.TemporaryDirectory() as name:
        wide, small, matrix = (Path(name) / f for f in ("wide.gguf", "small.gguf", "imatrix.gguf"))
        write(source, weights, wide)
        quantize: list[str | Path] = [tools / "llama-quantize"]
        if text is not None:
            weigh = [tools / "llama-imatrix", "-m", wide, "-f", text, "-o", matrix, "-c", "512"]
            run([*weigh, "--chunks", str(CHUNKS), "--no-ppl"])
            quantize += ["--imatrix", matrix]
        run([*quantize, wide, small, kind, str(os.cpu_count())])
        return {
            tensor.name: (
                gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32),
                int(tensor.n_bytes),
            )
            for tensor in gguf.GGUFReader(small).tensors
            if tensor.name in weights
        }


def run(command: list[str | Path]) -> None:
    """Run a tool; what it says is shown only where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")


def write(source: Path, weights: Mapping[str, Any], out: Path) -> None:
    """The file with its description, all tensors in float32, some of them replaced."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        values = weights.get(tensor.name)
        if values is None:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
