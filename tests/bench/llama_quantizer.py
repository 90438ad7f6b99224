"""llama.cpp's own quantizer on a whole model, which chooses a type for each tensor by itself.

The library is that of the Python package `llama-cpp-python`, in an environment of its own. Types
whose blocks of 256 do not divide a row are replaced as the tool replaces them.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from peers import QUANTIZE


def quantized(
    source: Path, weights: Mapping[str, Any], kind: str, python: Path
) -> dict[str, tuple[Any, int]]:
    """Quantize some matrices of a model, and unpack them.

    Args:
        source: a GGUF file with the model's description and all of its tensors.
        weights: float32 [N, K] by tensor name, in place of those of the file.
        kind: a type of the tool, such as Q4_K_M.
        python: an interpreter that has `llama_cpp`.

    Returns:
        Each matrix as the tool's runtime multiplies with it, and its bytes.
    """
    with tempfile.TemporaryDirectory() as name:
        wide, small = Path(name) / "wide.gguf", Path(name) / "small.gguf"
        write(source, weights, wide)
        code = QUANTIZE.replace("MOSTLY_Q4_0", f"MOSTLY_{kind}")
        command = [str(python), "-c", code, str(wide), str(small)]
        subprocess.run(command, check=True, capture_output=True)
        return {
            tensor.name: (
                gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32),
                int(tensor.n_bytes),
            )
            for tensor in gguf.GGUFReader(small).tensors
            if tensor.name in weights
        }


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
