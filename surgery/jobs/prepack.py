"""Weights in the order in which the kernels of this machine read them, mapped from a file.

onnxruntime copies most weights into another order when it loads a graph, so a process holds all of
them in memory of its own. It can also write these copies beside the weights: a later process
packs again, finds equal bytes in the file, and maps those instead. Its own memory is then a small
part, what is mapped can be dropped and read again by the system, and processes share it. On a
processor whose kernels want another order the bytes differ, and the package works as one that was
not prepacked.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from surgery.answer.trusted import check_config, parts_of, read_package
from surgery.base import manifest
from surgery.base.console import announce, progress
from surgery.base.errors import PackageError, first_line
from surgery.base.files import read_text
from surgery.base.packed import BUFFER, packed_entries
from surgery.base.staging import check_free, staged
from surgery.engine.admission import read_model
from surgery.jobs.measured_card import CARD, PICTURE, unmeasured

CONFIG = "genai_config.json"
SAVED = "session.save_external_prepacked_constant_initializers"
FILE = "session.optimized_model_external_initializers_file_name"
"""Options of onnxruntime: write packed weights, too; and the name of the file of all weights."""
DATA = "packed.data"
"""Name of that file."""
ALIGNMENT = 1 << 16
"""Of offsets: the granularity of mappings on Windows, and a multiple of every page size."""
CHUNK = 1 << 24
"""Bytes that are copied at once."""


def prepack(package: str | Path, output: str | Path | None = None, force: bool = False) -> Path:
    """Write a package whose weights are stored a second time, packed for this machine's CPU.

    It holds every file of the package. Data files of graphs become up to twice as large; graphs
    say where the packed copies lie, and change in nothing else.

    Args:
        package: folder of a package for the CPU.
        output: directory to write, PACKAGE-prepacked by default. It appears only when complete.
        force: replace an earlier output.

    Returns:
        The output directory.

    Raises:
        PackageError: the package is broken, is made for another provider, or is prepacked.
        OutputError: the output cannot be written.
    """
    package = Path(package)
    output = Path(output or package.with_name(f"{package.name}-prepacked"))
    check_free(output, force, [package])
    graphs = graphs_of(package)
    whole = manifest.read(package)
    if whole is None:
        raise PackageError(f"{package}: {manifest.NAME}, its manifest, is missing. Build it again.")
    if "prepacked" in whole:
        raise PackageError(f"{package}: is prepacked already. Give the package that it came from.")
    about = {key: value for key, value in whole.items() if key not in ("writer", "files")}
    about["prepacked"] = {"onnxruntime": ort.__version__, "machine": platform.machine()}
    with staged(output, force, about, [package]) as stage, progress() as bar:
        task = bar.add_task("graphs", total=len(graphs))
        for name in whole["files"].keys() - graphs.keys() - {CARD, PICTURE}:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / name, stage / name)
        # what eval measured, it measured of the other package
        if CARD in whole["files"]:
            card = unmeasured(read_text(package / CARD, PackageError))
            (stage / CARD).write_text(card, encoding="utf-8")
        packed = 0
        for name, entries in graphs.items():
            packed += write(package / name, stage / name, entries)
            bar.advance(task)
        if not packed:
            raise PackageError(f"{package}: none of its weights is packed on this machine.")
    announce(f"wrote {output}: {packed / 1e6:,.1f} MB of packed weights beside the others")
    return output


def graphs_of(package: Path) -> dict[str, dict[str, str]]:
    """Names of the graphs of a package for the CPU, and options of their sessions in onnxruntime.

    Raises:
        PackageError: a configuration is broken, or a graph is made for another provider.
    """
    config = read_package(package, CONFIG)
    check_config(package, config)
    graphs = {}
    for part in parts_of(config):
        section: dict[str, Any] = config["model"][part]
        options = section.get("session_options", {})
        for entry in options.get("provider_options", []):
            for provider in entry:
                raise PackageError(
                    f"{package}: made for {provider}; only weights of CPU packages are packed."
                )
        entries = {key: value for key, value in options.items() if "." in key}
        graphs[section["filename"]] = {key: str(value) for key, value in entries.items()}
    return graphs


def write(graph: Path, out: Path, entries: Mapping[str, str]) -> int:
    """Write a graph, and packed copies of its weights at the end of the data files they lie in.

    Args:
        graph: an ONNX file, its data files beside it.
        out: the file to write, in a folder that has copies of these data files.
        entries: options of the session, by key; one that does not pack gets no copies.

    Returns:
        Bytes of the packed copies.

    Raises:
        PackageError: it is no graph that can be worked on, onnxruntime cannot load it, or not write
            its copies.
    """
    read_model(graph)  # refuses, among others, data files in other folders
    with tempfile.TemporaryDirectory(prefix=".packed-", dir=out.parent) as folder:
        saved = Path(folder) / graph.name
        save(graph, saved, entries)
        made = onnx.load(saved, load_external_data=False).graph.initializer
        copies = {tensor.name: packed_entries(tensor) for tensor in made}
        model = onnx.load(graph, load_external_data=False)
        total = 0
        for tensor in model.graph.initializer:
            for key, value in copies.get(tensor.name, {}).items():
                where = {entry.key: entry.value for entry in tensor.external_data}
                if "location" not in where:
                    continue  # a small weight inside the graph's own file
                moved, size = append(value, saved.with_name(DATA), out.parent / where["location"])
                tensor.external_data.add(key=key, value=moved)
                total += size
    onnx.save(model, out)
    return total


def save(graph: Path, out: Path, entries: Mapping[str, str]) -> None:
    """Let onnxruntime write a graph as it stands, its weights and their packed copies.

    Raises:
        PackageError: it cannot load the graph, or not write there.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(out)
    for key, value in {**entries, FILE: DATA, SAVED: "1"}.items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime has a class of its own for each status
        raise PackageError(f"{graph}: onnxruntime cannot pack it: {first_line(e)}") from e


def append(entry: str, source: Path, target: Path) -> tuple[str, int]:
    """Copy the buffers of an entry to the end of another data file.

    Returns:
        The entry with the new offsets, and the bytes of its buffers.
    """
    total = 0
    with source.open("rb") as read, target.open("r+b") as write:

        def moved(found: re.Match[str]) -> str:
            nonlocal total
            offset, length = int(found[1]), int(found[2])
            place = -(-write.seek(0, os.SEEK_END) // ALIGNMENT) * ALIGNMENT
            write.truncate(place)
            write.seek(place)
            read.seek(offset)
            for start in range(0, length, CHUNK):
                write.write(read.read(min(CHUNK, length - start)))
            total += length
            return f"{place};{length}"

        return BUFFER.sub(moved, entry), total
