"""Run a generic recipe on any ONNX graph, or on every graph in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from surgery.base import manifest
from surgery.base.console import announce
from surgery.base.errors import UserError
from surgery.base.files import write_json
from surgery.base.staging import check_free, staged
from surgery.engine import runner
from surgery.engine.loading import graph_files, load_any, naming
from surgery.engine.options import PRESETS, Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.selection import known
from surgery.jobs import quantization
from surgery.jobs.build import QUANTIZATION, show
from surgery.jobs.calibrate_graph import calibrated
from surgery.jobs.describe import beside, describe, reading_of
from surgery.jobs.left_float import left_float
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
    configuration is there: genai_config.json, the tokenizer's files and the chat template. With
    INT4, quantization.json lists by graph the weights that are quantized, and those that are not.

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
        UserError: there is no such recipe or graph, the preset calibrates, or the output cannot be
            written.
    """
    known("--recipe", recipe, GENERIC)
    if PRESETS[options.preset].calibrated and options.calibrate is None:
        raise UserError(
            f"--preset {options.preset}: a graph of another exporter is calibrated on inputs of "
            f"yours. Add --calibrate FILE.npz, or take --preset fast, with --bits for more bits."
        )
    if options.own_prefill and recipe != "decoder":
        raise UserError(f"--prefill {options.prefill}: for decoders. Add --recipe decoder.")
    source, output = Path(source), Path(output)
    home = None if config is None else Path(config)
    paths = graph_files(source)
    if options.calibrate is not None and len(paths) > 1:
        raise UserError(
            f"--calibrate {options.calibrate}: for one graph, and {source} has {len(paths)}. Name "
            f"one with -i."
        )
    inputs = [source] if home is None else [source, home]
    check_free(output, force, inputs)
    packaged = recipe == "decoder"
    described = beside(source, home) if packaged else None
    if described is not None:  # positions beyond the context need no rows
        options = replace(options, max_length=described.length(options.max_length))
    done: dict[str, list[dict[str, object]]] = {}
    models: dict[str, ir.Model] = {}
    quantized: dict[str, object] = {}
    told: list[str] = []
    about = {
        "kind": "graphs",
        "versions": manifest.versions(LIBRARIES),
        "options": {"recipe": recipe, **options.data()},
        "graphs": done,
    }
    with staged(output, force, about, inputs) as stage:
        for path in paths:
            with naming(path):
                model = load_any(path)
                settings = Settings(options=options, head_widths=head_weights(model))
                if options.calibrate is not None:
                    settings = replace(settings, plan=calibrated(path, GENERIC[recipe], settings))
                records = []
                for record in runner.run(path.stem, model, GENERIC[recipe], settings):
                    tell(record, "")
                    records.append(record)
            done[path.name] = [{"pass": one.name, "sites": one.sites} for one in records]
            if settings.quantized:
                works = [record.work for record in records]
                left = left_float(model, works)
                quantized[path.name] = quantization.listed(model, works) | {
                    "float": [group.data() for group in left]
                }
                told += [group.line() for group in left]
            models[path.name] = model
        if quantized:
            write_json(quantized, stage / QUANTIZATION)
        if packaged:
            told += describe(models, described, options, stage)
        with reading_of(described, stage) as reading:
            layout = write_graphs(models, stage, read={path.name: path for path in paths})
            told += filter(None, [reading.note() if reading else ""])
    total = sum(layout.sizes.values())
    announce(f"wrote {output}: {len(models)} graphs, {total / 1e6:,.1f} MB of weights")
    for line in told:
        announce(line)
    return output
