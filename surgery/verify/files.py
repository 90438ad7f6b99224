"""Every file is there, and every weight lies inside its data file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from surgery.errors import PackageError
from surgery.verify.finding import Finding
from surgery.verify.opened import PARTS, Opened

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def check_files(package: Opened) -> Iterator[Finding]:
    """Configurations, tokenizer, graphs, data files."""
    try:
        names = [package.model["vision"]["config_filename"], *TOKENIZER]
        for part in PARTS:
            names.append(package.path(part).name)
    except KeyError as e:
        yield Finding("genai_config.json", problem=f"{e} is missing")
        return
    missing = [name for name in names if not (package.folder / name).is_file()]
    if missing:
        for name in missing:
            yield Finding(name, problem="is missing")
        return
    try:
        graphs = package.graphs
        assert package.processor
    except PackageError as e:
        yield Finding(Path(str(e).split(": ")[0]).name, problem=str(e))
        return
    yield Finding("named files", f"{len(names)} are there")
    for part, model in graphs.items():
        yield from check_data(package, part, model)


def check_data(package: Opened, part: str, model: ir.Model) -> Iterator[Finding]:
    """The data files of one graph."""
    ends: dict[str, int] = defaultdict(int)
    for tensor in external(model):
        offset, length = tensor.offset or 0, tensor.length
        needed = tensor.nbytes
        if length not in (None, needed):
            yield Finding(
                f"{package.path(part).name}: {tensor.name}",
                problem=f"length {length:,}, its type and shape make it {needed:,} bytes",
            )
        ends[str(tensor.location)] = max(ends[str(tensor.location)], offset + needed)
    for name, end in sorted(ends.items()):
        path = package.folder / name
        what = f"{name}"
        if Path(name).name != name:
            yield Finding(what, problem="lies outside the package, which the runtime refuses")
        elif not path.is_file():
            yield Finding(what, problem=f"is missing; {package.path(part).name} reads it")
        elif path.stat().st_size != end:
            size = path.stat().st_size
            how = "truncated" if size < end else "not the file that belongs here"
            yield Finding(what, problem=f"{how}: {size:,} bytes, the graph refers to {end:,}")
        else:
            yield Finding(what, f"{end:,} bytes")


def external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Weights of a graph that lie in a file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
