"""A generic recipe on any ONNX graph, or on a folder of them."""

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
from surgery.match.logits import head_weights
from surgery.package.external_data import write_graphs

LIBRARIES = ("onnx-ir", "onnxscript", "onnxruntime")
"""Whose versions shape a graph."""
DEFAULT = Options(text_precision="fp32")
"""Options of a run on graphs without a checkpoint."""


def apply(
    source: str | Path,
    output: str | Path,
    recipe: str = "any",
    options: Options = DEFAULT,
    force: bool = False,
    tell: Callable[[runner.Record, str], None] = show,
) -> Path:
    """Run a generic recipe on every graph and write them, weights in data files.

    Args:
        source: an ONNX file, or a folder of them.
        output: directory to write, whole or not at all.
        recipe: "decoder", "vision" or "any".
        options: precision, provider and sizes.
        force: replace an earlier output.
        tell: takes each pass's record; prints a line by default.

    Returns:
        The output directory.

    Raises:
        UserError: no such recipe or graph, or no place for the output.
    """
    known("--recipe", recipe, GENERIC)
    source, output = Path(source), Path(output)
    paths = graph_files(source)
    check_free(output, force, [source])
    done: dict[str, list[dict[str, object]]] = {}
    models = {}
    about = {
        "kind": "graphs",
        "versions": manifest.versions(LIBRARIES),
        "options": {"recipe": recipe, **asdict(options)},
        "graphs": done,
    }
    with staged(output, force, about, [source]) as stage:
        for path in paths:
            model = load_any(path)
            settings = Settings(options=options, head_names=head_weights(model))
            done[path.name] = []
            for record in runner.run(path.stem, model, GENERIC[recipe], settings):
                tell(record, "")
                done[path.name].append({"pass": record.name, "sites": record.sites})
            models[path.name] = model
        layout = write_graphs(models, stage)
    total = sum(layout.sizes.values())
    console.print(f"wrote {output}: {len(models)} graphs, {total / 1e6:,.1f} MB of weights")
    return output
