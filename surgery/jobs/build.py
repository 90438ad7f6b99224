"""The main job: build a package from raw graphs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from surgery.answer.reading import Reading
from surgery.base import manifest
from surgery.base.console import announce, console, progress
from surgery.base.files import write_json
from surgery.base.staging import check_free, staged
from surgery.calibrate.plan import Plan
from surgery.engine import loading, runner
from surgery.engine.facts import Facts
from surgery.engine.options import PRESETS, Options, Settings
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import EVERYTHING, Selection
from surgery.jobs import quantization
from surgery.jobs.browser import write_browser
from surgery.jobs.cache import with_ranges
from surgery.jobs.calibrate import calibrated
from surgery.package import transformers_js
from surgery.package.card import model_card
from surgery.package.chat_template import check_template
from surgery.package.external_data import Layout, write_graphs
from surgery.package.genai_config import PROCESSOR, check_tokens, filenames, genai_config, token_ids
from surgery.package.language_model import TOKENIZER
from surgery.package.processor_config import processor_config
from surgery.package.tokenizer import copy_tokenizer
from surgery.passes.quantized.blocks import PlannedPass

QUANTIZATION = "quantization.json"
"""Format, size and loss of each quantized weight."""

LIBRARIES = ("numpy", "onnx-ir", "onnxscript", "onnxruntime")
"""Whose versions shape a package."""


def build(
    raw: str | Path = "build/raw",
    output: str | Path | None = None,
    options: Options | None = None,
    force: bool = False,
    watchers: Sequence[runner.Watcher] = (),
    tell: Callable[[runner.Record, str], None] | None = None,
) -> Path:
    """Apply the recipes to a raw export and write a package for onnxruntime-genai.

    With the option `runtime` "transformers.js", it is one for that library.

    Args:
        raw: directory that `export_min` wrote.
        output: directory to write. It appears only when it is complete. By default,
            build/PROVIDER-PRECISION, or build/transformers.js-PRECISION.
        options: precision, execution provider and sizes.
        force: replace an earlier package.
        watchers: see the graph after each pass, but do not change it.
        tell: called with the record of each pass and the remarks of the watchers. By default, it
            prints a line.

    Returns:
        The output directory.

    Raises:
        UserError: the input, the output path or a graph is invalid.
    """
    options = options or Options()
    made_for = Settings(options=options).target.name  # the decoder's
    output = Path(output or f"build/{made_for}-{options.text_precision}")
    check_free(output, force, [Path(raw)])
    facts = Facts.load(Path(raw), options)
    inputs = facts.raw, facts.checkpoint, facts.weights
    facts.check_unchanged()
    told = check_configurations(facts)
    facts = planned(facts)
    plans: dict[str, Plan] = {}

    def hear(record: runner.Record, words: str) -> None:
        work = record.work
        if isinstance(work, PlannedPass) and isinstance(work.followed, Plan):
            plans[record.graph] = work.followed
        (tell or show)(record, words)

    models = operate(facts, watchers=watchers, tell=hear)
    facts = replace(facts, plan=plans.get("decoder"), tower=plans.get("vision"))
    about = {
        "kind": "package",
        "versions": manifest.versions(LIBRARIES),
        "options": options.data(),
    }
    with staged(output, force, about, inputs) as stage:
        layout, notes = write(models, stage, facts)
    total = sum(layout.sizes.values())
    if facts.plan is not None and facts.plan.measured:
        for part in quantization.summary(facts.plan, [models["decoder"]]):
            console.print(part, soft_wrap=isinstance(part, str))
    announce(f"wrote {output}: {total / 1e6:,.1f} MB of weights in {len(layout.sizes)} files")
    for line in (*told, *notes):
        if line:
            announce(line)
    announce(f"ask it: {question(output, facts)}")
    return output


def planned(facts: Facts) -> Facts:
    """The facts with what the options want measured: a calibration, ranges of the cache."""
    if facts.quantized and PRESETS[facts.options.preset].calibrated:
        facts = replace(facts, plan=calibrated(facts, rounded))
    return with_ranges(facts, rounded)


def rounded(facts: Facts, folder: Path) -> None:
    """Write a package without a word into a new directory.

    Prompts have no weights of their own, and the head computes all logits: tokens are drawn from
    the whole vocabulary.
    """
    facts = replace(facts, options=replace(facts.options, prefill="same", shortlist=0))
    models = operate(facts, tell=lambda record, words: None)
    folder.mkdir(parents=True)
    write(models, folder, facts)


def check_configurations(facts: Facts) -> tuple[str, str]:
    """Read everything that goes into the package besides weights, before any work is done.

    Returns:
        Lines for the user, about the chat template and the padding token; "" if there is nothing
        to say.

    Raises:
        PackageError: a file of the checkpoint is not what it must be.
    """
    check_tokens(facts)
    without = check_template(facts.tokens)
    if facts.browser:
        transformers_js.preprocessor_config(facts)
    else:
        genai_config(facts)
        processor_config(facts)
    length, most = facts.options.max_length, int(facts.text["max_position_embeddings"])
    if length > most and length != Options().max_length:
        announce(
            f"--max-length {length}: the checkpoint was made for {most} positions "
            f"(max_position_embeddings); answers beyond them may be poor",
        )
    return without, token_ids(facts).padding()[1]


def question(output: Path, facts: Facts) -> str:
    """Return a command that asks the package about a picture: for the demo, one of its own."""
    folder = os.path.join(".", output) if str(output).startswith("-") else str(output)
    if facts.browser:
        return shlex.join(["python", "-m", "surgery", "demo", folder])
    picture, about = "PICTURE", "What is in this picture?"
    if facts.manifest["source"] == "demo":
        picture = os.path.relpath(facts.checkpoint / "images" / "shapes.png")
        about = "where is the green rectangle?"
    words = ["python", "-m", "surgery", "chat", folder, "--image", picture]
    return f'{shlex.join(words)} "{about}"'


def operate(
    facts: Facts,
    selection: Selection = EVERYTHING,
    watchers: Sequence[runner.Watcher] = (),
    tell: Callable[[runner.Record, str], None] | None = None,
) -> dict[str, ir.Model]:
    """Run the recipes on the raw graphs.

    Args:
        facts: the raw export and the options.
        selection: the passes and graphs to run. By default, all.
        watchers: see the graph after each pass, but do not change it.
        tell: called with the record of each pass and the remarks of the watchers. By default, it
            prints a line.

    Returns:
        The finished graphs by name.
    """
    models = {}
    try:
        for name in selection.graphs:
            model = loading.load(facts.raw / f"{name}.onnx", facts.weights)
            for record, words in runner.watched(
                name, model, RECIPES[name], facts.of(name), selection, watchers
            ):
                (tell or show)(record, words)
            models[name] = model
    finally:
        for watcher in watchers:
            watcher.end()
    return models


def show(record: runner.Record, words: str = "") -> None:
    """Print the line of a pass, with the remarks of the watchers."""
    announce(f"{record.line()}  {words}".rstrip())


def write(
    models: dict[str, ir.Model], folder: Path, facts: Facts
) -> tuple[Layout, tuple[str, ...]]:
    """Write all files of a package.

    Meanwhile the runtime and Hugging Face read texts with its tokenizer, and must agree.

    Returns:
        Where the weights are, and lines for the user about the tokenizer, which may be "".

    Raises:
        PackageError: a file of the checkpoint is not what it must be, or the runtime reads another
            text out of it.
    """
    if facts.options.strip:
        for model in models.values():
            ClearMetadataAndDocStringPass()(model)
    if facts.plan is not None or facts.tower is not None:
        plan = facts.plan or Plan({}, (), 0.0)
        unplanned = quantization.rest(models.values(), plan)
        write_json(plan.data() | {"rounded": unplanned}, folder / QUANTIZATION)
    if facts.browser:
        layout, copied = write_browser(models, folder, facts)
        return layout, (copied,)
    copied = copy_tokenizer(facts.tokens, folder)
    write_json(genai_config(facts), folder / "genai_config.json")
    write_json(processor_config(facts), folder / PROCESSOR)
    names = filenames(facts)
    asked = Reading(folder, facts.tokens.folder / TOKENIZER)
    with asked as reading, progress(in_bytes=True) as bar:
        task = bar.add_task("weights", total=None)
        layout = write_graphs(
            {names[part]: model for part, model in models.items()},
            folder,
            report=lambda done, total: bar.update(task, completed=done, total=total),
            strict=True,
        )
        read = reading.note()
    (folder / "README.md").write_text(model_card(facts, layout), encoding="utf-8")
    return layout, (copied, read)
