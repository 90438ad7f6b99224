"""Check a package for transformers.js: files, data, and the names that the library goes by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from surgery.base.errors import PackageError
from surgery.base.files import read_json
from surgery.engine import loading
from surgery.verify.files import TOKENIZER, external, fault
from surgery.verify.finding import Finding

KEY = "transformers.js_config"
"""What config.json of such a package holds, and no other."""
GRAPHS = {
    "vision_encoder": ({"pixel_values"}, {"image_features"}),
    "embed_tokens": ({"input_ids"}, {"inputs_embeds"}),
    "decoder_model_merged": ({"inputs_embeds", "attention_mask", "position_ids"}, {"logits"}),
}
"""Each graph, with inputs and outputs that it must have."""
UNCHECKED = "not checked: transformers.js computes them; tests/web/README.md shows how to run it"


def is_for_browser(folder: Path) -> bool:
    """Whether a folder holds a package for transformers.js."""
    if (folder / "genai_config.json").exists() or not (folder / "config.json").is_file():
        return False
    return KEY in read_json(folder / "config.json", PackageError)


def check_browser(folder: Path) -> Iterator[Finding]:
    """Check everything but the answers."""
    for name in (*TOKENIZER, "generation_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            yield Finding(name, problem="is missing")
    own = read_json(folder / "config.json", PackageError)[KEY]
    dtype, counts = own["dtype"], own["use_external_data_format"]
    suffix = "" if dtype == "fp32" else f"_{dtype}"
    widths = {}
    for name, ends in GRAPHS.items():
        file = f"{name}{suffix}.onnx"
        try:
            model = loading.load(folder / "onnx" / file)
        except PackageError as e:
            yield fault(folder / "onnx" / file, e)
            continue
        yield check_ends(file, model, *ends)
        yield check_data(file, model, int(counts.get(file, 0)))
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.name in ("image_features", "inputs_embeds") and value.shape is not None:
                widths[f"{value.name} of {file}"] = value.shape[-1]
    told = ", ".join(f"{name} {width}" for name, width in widths.items())
    unlike = f"differ: {told}" if len(set(widths.values())) != 1 else ""
    yield Finding("widths", f"{next(iter(widths.values()), 0)} columns everywhere", unlike)
    yield Finding("answers", UNCHECKED)


def check_ends(file: str, model: ir.Model, inputs: set[str], outputs: set[str]) -> Finding:
    """The names of inputs and outputs, and of the dimension that the library fills in."""
    graph = model.graph
    lost = inputs - {str(v.name) for v in graph.inputs}
    lost |= outputs - {str(v.name) for v in graph.outputs}
    problem = f"has no {', '.join(sorted(lost))}" if lost else ""
    for value in graph.inputs:
        cache = str(value.name).startswith("past_key_values.") and value.shape is not None
        if cache and str(value.shape[0]) != "batch_size":  # type: ignore[index]
            problem = f"{value.name} has a first dimension {value.shape[0]}, not batch_size"  # type: ignore[index]
    return Finding(file, f"{len(graph.inputs)} inputs, {len(graph.outputs)} outputs", problem)


def check_data(file: str, model: ir.Model, count: int) -> Finding:
    """The data files that config.json counts are those that the graph names."""
    tensors = list(external(model))
    named = {str(tensor.location) for tensor in tensors}
    listed = {f"{file}_data" + (f"_{i}" if i else "") for i in range(count)}
    problem = ""
    if named != listed:
        problem = f"has {', '.join(sorted(named)) or 'no data'}, config.json counts {count} files"
    size = sum(tensor.nbytes for tensor in tensors)
    return Finding(f"{file}_data", f"{size:,} bytes", problem)
