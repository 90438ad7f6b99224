"""Run a generic recipe on any ONNX graph, or on every graph in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from surgery.base import manifest
from surgery.base.console import console
from surgery.base.staging import check_free, staged
from surgery.engine import runner
from surgery.engine.loading import graph_files, load_any
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.selection import known
from surgery.jobs.build import show
from surgery.jobs.describe import beside, describe
from surgery.match.logits import head_weights
from surgery.package.external_data import write_graphs

LIBRARIES = ("onnx-ir", "onnxscript", "onnxruntime")
"""Whose versions shape a graph."""
DEFAULT = Options(text_precision="fp32")
"""Default options for graphs of other exporters: nothing is quantized."""


def apply(
    source: str | Path,
    output: str | Path,
    recipe: str = "any",
    options: Options = DEFAULT,
    force: bool = False,
    tell: Callable[[runner.Record, str], None] = show,
    config: str | Path | None = None,
) -> Path:
    """Run a generic recipe on every graph and write each with a data file for its weights.

    The recipe for decoders makes a package for onnxruntime-genai of a decoder with a cache whose
    configuration is there: genai_config.json, the tokenizer's files and the chat template.

    Args:
        source: an ONNX file, or a folder of ONNX files.
        output: directory to write. It appears only when it is complete.
        recipe: "decoder", "vision" or "any".
        options: precision, execution provider and sizes.
        force: replace an earlier output.
        tell: called with the record of each pass. By default, it prints a line.
        config: folder of the decoder's config.json, as Hugging Face has it, and of its tokenizer;
            by default that of the graph, if config.json lies there.

    Returns:
        The output directory.

    Raises:
        UserError: there is no such recipe or graph, or the output cannot be written.
    """
    known("--recipe", recipe, GENERIC)
    source, output = Path(source), Path(output)
    home = None if config is None else Path(config)
    paths = graph_files(source)
    inputs = [source] if home is None else [source, home]
    check_free(output, force, inputs)
    packaged = recipe == "decoder"
    described = beside(source, home) if packaged else None
    done: dict[str, list[dict[str, object]]] = {}
    models = {}
    about = {
        "kind": "graphs",
        "versions": manifest.versions(LIBRARIES),
        "options": {"recipe": recipe, **asdict(options)},
        "graphs": done,
    }
    with staged(output, force, about, inputs) as stage:
        for path in paths:
            model = load_any(path)
            settings = Settings(options=options, head_names=head_weights(model))
            done[path.name] = []
            for record in runner.run(path.stem, model, GENERIC[recipe], settings):
                tell(record, "")
                done[path.name].append({"pass": record.name, "sites": record.sites})
            models[path.name] = model
        told = describe(models, described, options, stage) if packaged else []
        layout = write_graphs(models, stage)
    total = sum(layout.sizes.values())
    console.print(f"wrote {output}: {len(models)} graphs, {total / 1e6:,.1f} MB of weights")
    for line in told:
        console.print(line, soft_wrap=True, markup=False)
    return output
