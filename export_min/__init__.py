"""Export a Qwen-VL checkpoint as three raw ONNX graphs that refer to its weights in place.

from export_min import export
export("Qwen/Qwen3-VL-4B-Instruct", "build/raw")
"""

from __future__ import annotations

from surgery.base import early  # noqa: F401  before anything that takes time

# isort: split
import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from export_min import families
from export_min.aside import meanwhile
from export_min.checkpoint import Checkpoint, open_checkpoint
from surgery.base import manifest
from surgery.base.console import announce, progress
from surgery.base.errors import CheckpointError
from surgery.base.staging import check_free, staged

__all__ = ["CheckpointError", "export", "open_checkpoint"]

GRAPHS = ("vision", "embedding", "decoder")
MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers", "onnx-ir", "onnxscript")
"""Libraries whose versions determine the exported graphs. The manifest records them."""


def export(
    checkpoint: str | Path | None = None,
    output: str | Path = "build/raw",
    cache_dir: str | None = None,
    revision: str | None = None,
    force: bool = False,
) -> Path:
    """Write `vision.onnx`, `embedding.onnx`, `decoder.onnx` and `manifest.json`.

    Export never reads weights, so their size does not matter.

    Args:
        checkpoint: a local directory or a hub id. By default, the demo checkpoint that the project
            contains.
        output: the directory to write. It appears only when it is complete.
        cache_dir: the download cache of the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        force: replace an earlier output.

    Returns:
        The output directory.

    Raises:
        CheckpointError: the checkpoint cannot be used; the message says why.
        OutputError: the output cannot be written.
    """
    output = Path(output)
    check_free(output, force)
    source = open_checkpoint(checkpoint, cache_dir, revision)
    source.check_tokenizer()
    inputs = source.path, *source.shards
    check_free(output, force, inputs)
    about = {"kind": "export", "versions": manifest.versions(LIBRARIES), "options": {}}
    # With two cores, this process traces the decoder while another one traces the other two graphs.
    # Both take about the same time.
    apart = GRAPHS[:2] if (os.cpu_count() or 1) > 1 else ()
    here = [name for name in GRAPHS if name not in apart]
    with progress() as bar, staged(output, force, about, inputs) as stage:
        bar.add_task("export", total=None)
        with meanwhile(source, stage, apart) if apart else contextlib.nullcontext():
            write_graphs(source, stage, here)
        write_manifest(source, stage / MANIFEST)
    announce(
        f"exported {source.source}: vision, embedding and decoder graphs in {output}, "
        f"weights stay in {source.folder}"
    )
    return output


def write_graphs(source: Checkpoint, folder: Path, names: Sequence[str]) -> None:
    """Trace the graphs `names` and write them.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    with uncollected():
        for name, model in trace_all(source, names):
            ir.save(model, folder / f"{name}.onnx")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turn garbage collection off for the whole process while the block runs.

    Tracing creates millions of objects that live until its end, and the collector would visit all
    of them again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trace_all(source: Checkpoint, names: Sequence[str] = GRAPHS) -> Iterator[tuple[str, ir.Model]]:
    """Trace the graphs `names` and yield each with its name.

    Their initializers are external tensors that point into the shards of the checkpoint.
    """
    from export_min import trace, unroll  # late, because importing torch takes seconds

    family = families.load(source.model_type)
    config = trace.load_config(source, family)
    weights = trace.checked_weights(source, family, config)
    short = family.shorten(config)
    model = trace.meta_model(family, short)
    stacks = family.stacks(config)
    for spec in family.specs(short):
        if spec.name not in names:
            continue
        graph = trace.trace(spec, model)
        if spec.name in stacks:
            unroll.unroll(graph, stacks[spec.name])
        trace.attach(graph, weights, config.tie_word_embeddings)
        yield spec.name, graph


def write_manifest(source: Checkpoint, path: Path) -> None:
    """Write what the graphs were made from. `surgery` finds the weights with nothing else."""
    from export_min.trace import load_config

    config = load_config(source, families.load(source.model_type))
    manifest = {
        "source": source.source,
        "revision": source.revision,
        "checkpoint": str(source.path),
        "weights": str(source.folder),
        "headers": source.headers,
        "samples": source.samples,
        "config": source.config,
        "resolved": json.loads(config.to_json_string(use_diff=False)),
        "tied": bool(config.tie_word_embeddings),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
