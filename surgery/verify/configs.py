"""Check that genai_config.json and processor_config.json match the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.answer.trusted import PARTS
from surgery.base.errors import PackageError
from surgery.base.files import MANIFEST_BYTES, read_json
from surgery.base.tokens import PICTURE_TOKENS, TEMPLATE, Tokens, misnamed
from surgery.verify.finding import Finding, same
from surgery.verify.opened import Opened, port

TRANSFORMS = ("DecodeImage", "Resize", "Rescale", "Normalize", "PatchImage")
"""Steps that the picture processor must have, in this order."""


def check_configs(package: Opened) -> Iterator[Finding]:
    """Check names, types and sizes. A missing key is a finding too."""
    try:
        found = list(check_ports(package))
        yield from found
        if any(finding.problem for finding in found):
            return  # without its inputs and outputs, no size can be checked
        if package.pictured:
            yield from check_links(package)
        yield from check_sizes(package)
        yield from check_tokens(package)
    except KeyError as e:
        yield Finding("genai_config.json", problem=f"{e} is missing")
    if not package.pictured:
        return
    try:
        yield from check_processor(package)
    except KeyError as e:
        yield Finding("processor_config.json", problem=f"{e} is missing")


def check_ports(package: Opened) -> Iterator[Finding]:
    """Check that each configured input and output exists, and that each input is configured."""
    layers = range(int(package.model["decoder"]["num_hidden_layers"]))
    lost: list[str] = []
    for part in package.parts:
        section, graph = package.model[part], package.graphs[part].graph
        for kind, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            named = set(expand(section[kind], layers))
            found = {str(v.name) for v in values}
            lost += [
                f"the {part} graph has no {kind[:-1]} {name}" for name in sorted(named - found)
            ]
            if kind == "inputs":
                lost += [
                    f"the input {name} of the {part} graph is not configured"
                    for name in sorted(found - named)
                ]
    yield Finding("inputs and outputs", "as configured", "; ".join(lost[:3]))
    if lost or not package.pictured:
        return
    grid = package.model["vision"]["inputs"]["image_grid_thw"]
    yield same("vision.inputs.image_grid_thw", grid, "image_grid_thw", "the runtime")


def expand(names: dict[str, str], layers: range) -> Iterator[str]:
    """Yield configured names, with "%d" replaced by the index of each layer."""
    for name in names.values():
        yield from (name.replace("%d", str(i)) for i in layers) if "%d" in name else (name,)


def check_links(package: Opened) -> Iterator[Finding]:
    """Check that each output that feeds another graph has the dtype and width of its input."""
    vision, embedding, decoder = (package.model[part] for part in PARTS)
    links = (
        ("vision", vision["outputs"], "embedding", embedding["inputs"], "image_features"),
        ("embedding", embedding["outputs"], "decoder", decoder["inputs"], "inputs_embeds"),
        ("embedding", embedding["outputs"], "decoder", decoder["inputs"], "per_layer_inputs"),
    )
    for source, makes, sink, takes, name in links:
        if name not in takes:
            continue
        made = port(package.graphs[source], makes[name])
        taken = port(package.graphs[sink], takes[name])
        yield same(f"{name} of {sink}", kind(taken), kind(made), f"the {source} graph")
    graph = package.graphs["decoder"]
    mask, positions = (
        port(graph, decoder["inputs"][name]) for name in ("attention_mask", "position_ids")
    )
    assert mask is not None and positions is not None
    yield same("position_ids", positions.dtype, mask.dtype, "attention_mask")


def kind(value: ir.Value | None) -> str:
    """Return dtype and width of a value as text."""
    return f"{value.dtype} x {width(value, -1)}" if value is not None else "absent"


def width(value: ir.Value | None, axis: int) -> int | None:
    """Return a static dimension of a value, or None."""
    if value is None or value.shape is None:
        return None
    found = value.shape[axis]
    return found if isinstance(found, int) else None


def check_sizes(package: Opened) -> Iterator[Finding]:
    """Check the sizes of the decoder, and the lengths of context and search."""
    model, graph = package.model, package.graphs["decoder"]
    decoder = model["decoder"]
    logits = port(graph, decoder["outputs"]["logits"])
    key = port(graph, decoder["inputs"]["past_key_names"].replace("%d", "0"))
    source = "the decoder graph"
    yield same("vocab_size", model["vocab_size"], width(logits, -1), source)
    if package.pictured:
        embeds = port(graph, decoder["inputs"]["inputs_embeds"])
        yield same("decoder.hidden_size", decoder["hidden_size"], width(embeds, -1), source)
    yield same("decoder.num_key_value_heads", decoder["num_key_value_heads"], width(key, 1), source)
    yield same("decoder.head_size", decoder["head_size"], width(key, 3), source)
    before, after = decoder["inputs"]["past_key_names"].split("%d")
    names = [str(v.name) for v in graph.graph.inputs]
    layers = sum(name.startswith(before) and name.endswith(after) for name in names)
    yield same("decoder.num_hidden_layers", decoder["num_hidden_layers"], layers, source)
    context, most = model["context_length"], package.config["search"]["max_length"]
    rows = rotary_rows(graph)
    if rows is not None:
        fault = "" if context <= rows else f"is {context}, but the rotary table has {rows} rows"
        yield Finding("context_length", f"{context}, rotary table of {rows} rows", fault)
    fault = (
        ""
        if 0 < most <= context
        else f"is {most}, needs to be positive and at most context_length {context}"
    )
    yield Finding("search.max_length", str(most), fault)


def rotary_rows(model: ir.Model) -> int | None:
    """Return the number of positions in the rotary tables of the decoder, None without tables."""
    rows = [
        value.shape[0]
        for graph in model.graphs()
        for node in graph
        if node.op_type in ("MRotaryEmbedding", "RotaryEmbedding")
        for value in node.inputs
        if value is not None and value.is_initializer() and value.shape is not None
        if len(value.shape) == 2
    ]
    return min((r for r in rows if isinstance(r, int)), default=None)


def check_tokens(package: Opened) -> Iterator[Finding]:
    """Check that token ids are in the vocabulary and match the tokenizer."""
    model, vocab = package.model, int(package.model["vocab_size"])
    ends = model["eos_token_id"]
    ids = {f"eos_token_id {e}": e for e in (ends if isinstance(ends, list) else [ends])}
    ids |= {name: model[name] for name in ("bos_token_id", "pad_token_id")}
    ids |= {name: model[name] for name in PICTURE_TOKENS if package.pictured}
    outside = [f"{name} is {i}" for name, i in ids.items() if not 0 <= int(i) < vocab]
    note = f"{len(ids)} in the vocabulary of {vocab}"
    fault = f"{', '.join(outside)}: outside the vocabulary of {vocab}" if outside else ""
    yield Finding("token ids", note, fault)
    try:
        tokens = Tokens.read(package.folder, PackageError)
    except PackageError as e:
        file, _, problem = str(e).partition(": ")
        yield Finding(Path(file).name, problem=f"cannot be read: {problem}")
        return
    if package.pictured:
        wrong = "; ".join(misnamed(model, tokens))
        yield Finding("picture tokens", "as in the tokenizer", wrong)
    pad = int(model["pad_token_id"])
    held = tokens.emitted().get(pad)
    fault = f"is {pad}, {held}, which prompts hold and the runtime would mask" if held else ""
    yield Finding("pad_token_id", f"{pad} ({tokens.name(pad)}), in no prompt", fault)
    if tokens.template is None and not package.pictured:
        yield Finding("chat template", "none: the package continues texts")
    else:
        yield check_template(package.folder, tokens)


def check_template(folder: Path, tokens: Tokens) -> Finding:
    """There is one chat template."""
    what = "chat template"
    if tokens.template is None:
        return Finding(what, problem="is missing: prompts cannot be written")
    config = read_json(folder / "tokenizer_config.json", PackageError, limit=MANIFEST_BYTES)
    if config.get("chat_template", tokens.template) != tokens.template:
        fault = f"{TEMPLATE} and tokenizer_config.json differ: transformers takes the first, the "
        return Finding(what, problem=f"{fault}runtime the second")
    return Finding(what, f"{len(tokens.template):,} characters")


def check_processor(package: Opened) -> Iterator[Finding]:
    """Check that the picture processor produces what the vision graph takes."""
    steps = [t["operation"] for t in package.processor["processor"]["transforms"]]
    attrs: dict[str, Any] = {step["type"]: step.get("attrs", {}) for step in steps}
    order = [step["type"] for step in steps if step["type"] in TRANSFORMS]
    yield same("processor steps", order, list(TRANSFORMS), "the runtime")
    swaps = "ConvertRGB" in attrs, bool(attrs["Normalize"].get("qwen3_vl"))
    fault = "ConvertRGB and qwen3_vl need each other: one alone swaps red and blue"
    yield Finding("channel order", "RGB", fault if swaps[0] != swaps[1] else "")
    resize, patch, vision = attrs["Resize"], attrs["PatchImage"], package.model["vision"]
    pixels = port(package.graphs["vision"], vision["inputs"]["pixel_values"])
    made = 3 * patch["temporal_patch_size"] * patch["patch_size"] ** 2
    yield same("values per patch", made, width(pixels, 1), "the vision graph")
    for name, configured in (
        ("patch_size", vision["patch_size"]),
        ("merge_size", vision["spatial_merge_size"]),
    ):
        yield same(f"PatchImage.{name}", patch[name], configured, "genai_config.json")
        if resize.get("smart_resize"):
            yield same(f"Resize.{name}", resize[name], configured, "genai_config.json")
