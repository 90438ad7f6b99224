"""Outputs written before every output had a manifest, recognized by what they hold.

Each kind has files that only this tool writes, and a closed list of names: a folder with anything
else in it is not recognized whole.
"""

from __future__ import annotations

from pathlib import Path

from surgery.base import manifest

EXPORT = {"manifest.json", "vision.onnx", "embedding.onnx", "decoder.onnx"}
FAMILIES = ("qwen3vl", "qwen25vl")
PACKAGE = {
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "genai_config.json",
    "generation_config.json",
    "merges.txt",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    *(
        f"{stem}.onnx{end}"
        for stem in ("model", *(f"{x}-{y}" for x in FAMILIES for y in ("embedding", "vision")))
        for end in ("", ".data")
    ),
}
CARD = "M-RoPE is exact"
"""A sentence in the README of every package."""


def names(folder: Path) -> set[str]:
    """Names that an output of an earlier version may hold; empty where the folder is none.

    Raises:
        OSError: the folder cannot be read.
    """
    export = manifest.read_object(folder / "manifest.json") or {}
    if all(isinstance(export.get(key), dict) for key in ("headers", "config", "versions")):
        return EXPORT
    graphs = (manifest.read_object(folder / manifest.NAME) or {}).get("graphs")
    if isinstance(graphs, dict) and graphs and all(name.endswith(".onnx") for name in graphs):
        return {manifest.NAME, *graphs, *(f"{name}.data" for name in graphs)}
    package = manifest.read_object(folder / "genai_config.json") or {}
    card = folder / "README.md"
    if isinstance(package.get("model"), dict) and card.is_file():
        with card.open("rb") as file:
            return PACKAGE if CARD.encode() in file.read(1 << 16) else set()
    return set()
