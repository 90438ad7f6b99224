"""Make a package of a decoder that others exported: genai_config.json and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import onnx_ir as ir

from surgery.answer.reading import Reading
from surgery.base.files import write_json
from surgery.engine.options import Options
from surgery.package.chat_template import check_template
from surgery.package.decoder_config import PLAIN, decoder_config
from surgery.package.decoder_graph import DecoderGraph, Unfit
from surgery.package.language_model import CONFIG, TOKENIZER, LanguageModel
from surgery.package.tokenizer import copy_tokenizer

GENAI = "genai_config.json"


def beside(graph: Path, folder: Path | None) -> LanguageModel | None:
    """The model's own configuration.

    Args:
        graph: an ONNX file, or a folder of ONNX files.
        folder: where config.json lies; None for the graph's own folder, which may lack it.

    Raises:
        PackageError: a file is missing from `folder`, or broken.
    """
    home = folder or (graph if graph.is_dir() else graph.parent)
    return LanguageModel.read(home) if folder or (home / CONFIG).exists() else None


def describe(
    models: Mapping[str, ir.Model], about: LanguageModel | None, options: Options, stage: Path
) -> list[str]:
    """Write what makes finished graphs a package, where the runtime can drive one of them.

    Args:
        models: graphs by the names of their files.
        about: the configuration of the model; None if there is none.
        options: execution provider, and rows of the rotary tables.
        stage: the folder to write to.

    Returns:
        Lines for the user: why there is no package, or what is noteworthy about it.

    Raises:
        PackageError: a file of the model is not what it must be.
    """
    try:
        name, graph = decoder_of(models)
        if about is None:
            raise Unfit(f"no {CONFIG} beside the graph; give its folder with --config")
        config = decoder_config(name, graph, about, options)
    except Unfit as e:
        return [f"no {GENAI}: {e}"]
    assert about.tokens is not None
    without = check_template(about.tokens)
    copied = copy_tokenizer(about.tokens, stage)
    write_json(config, stage / GENAI)
    kind = config["model"]["type"]
    length = config["model"]["context_length"]
    told = [f"{GENAI}: type {kind}, {graph.layers} layers, {length:,} positions"]
    if kind == PLAIN:
        told.append(f"onnxruntime-genai has no type {about.kind}; {PLAIN} is its type for any")
    padding = about.ids(about.tokens, graph.vocabulary).padding()[1]
    return [*told, *filter(None, (copied, without, padding))]


def reading_of(about: LanguageModel | None, stage: Path) -> AbstractContextManager[Reading | None]:
    """Both readings of the tokenizer of a package that `describe` wrote; None if it wrote none."""
    if about is None or about.tokens is None or not (stage / GENAI).exists():
        return nullcontext()
    return Reading(stage, about.tokens.folder / TOKENIZER)


def decoder_of(models: Mapping[str, ir.Model]) -> tuple[str, DecoderGraph]:
    """The one graph that the runtime can drive.

    Raises:
        Unfit: there is none, or there are several.
    """
    found, reasons = {}, []
    for name, model in models.items():
        try:
            found[name] = DecoderGraph.read(model)
        except Unfit as e:
            reasons.append(f"{name}: {e}" if len(models) > 1 else str(e))
    if not found:
        raise Unfit("; ".join(reasons))
    if len(found) > 1:
        raise Unfit(f"{len(found)} decoders ({', '.join(found)}), a package has one")
    return next(iter(found.items()))
