"""Check that every file exists, and that every data file has the length that the graphs need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from surgery.answer.trusted import check_config, check_processor
from surgery.base.errors import PackageError
from surgery.engine.admission import PACKED
from surgery.verify.finding import Finding
from surgery.verify.opened import Opened

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def check_files(package: Opened) -> Iterator[Finding]:
    """Check the configurations, the tokenizer, the graphs and the data files."""
    try:
        check_config(package.folder, package.config)
    except PackageError as e:
        yield fault(package.folder / "genai_config.json", e)
        return
    try:
        names = [*TOKENIZER]
        if package.pictured:
            names.append(package.model["vision"]["config_filename"])
        for part in package.parts:
            names.append(package.path(part).name)
    except KeyError as e:
        yield Finding("genai_config.json", problem=f"{e} is missing")
        return
    missing = [name for name in names if not (package.folder / name).is_file()]
    if missing:
        for name in missing:
            yield Finding(name, problem="is missing")
        return
    if package.pictured:
        processor = package.folder / package.model["vision"]["config_filename"]
        try:
            check_processor(processor, package.processor)
        except PackageError as e:
            yield fault(processor, e)
            return
    for part in package.parts:
        try:
            package.load(part)
        except PackageError as e:
            yield fault(package.path(part), e)
            return
    yield Finding("named files", f"{len(names)} are there")
    yield from check_data(package)


def fault(file: Path, error: PackageError) -> Finding:
    """The finding for a file that is not what it must be."""
    return Finding(file.name, problem=str(error).removeprefix(f"{file}: "))


def check_data(package: Opened) -> Iterator[Finding]:
    """Check the data files, which several graphs may share."""
    ends: dict[str, int] = defaultdict(int)
    readers: dict[str, str] = {}
    for part, model in package.graphs.items():
        graph = package.path(part).name
        for tensor in external(model):
            if tensor.length not in (None, tensor.nbytes):
                fault = (
                    f"has length {tensor.length:,}, but its dtype and shape require "
                    f"{tensor.nbytes:,}"
                )
                yield Finding(f"{graph}: {tensor.name}", problem=fault)
            name = str(tensor.location)
            ends[name] = max(ends[name], (tensor.offset or 0) + tensor.nbytes)
            readers.setdefault(name, graph)
        for name, end in model.meta[PACKED].items():
            ends[name] = max(ends[name], end)
    for name, end in ends.items():
        path = package.folder / name
        size = path.stat().st_size if path.is_file() else None
        if Path(name).name != name:
            fault = "is outside the package, which the runtime refuses"
        elif size is None:
            fault = f"is missing, but {readers[name]} refers to it"
        elif size != end:
            how = "truncated" if size < end else "longer than expected"
            fault = f"{how}: has {size:,} bytes, but the graphs refer to {end:,}"
        else:
            fault = ""
        yield Finding(name, f"{end:,} bytes", fault)


def external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the initializers of a graph that are stored in a data file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
