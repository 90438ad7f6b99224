"""Check an ONNX file from anybody before a pass sees it.

Protobuf accepts far more than a graph: an empty file, a node without its inputs, functions that
call each other a billion times, data files anywhere on the disk. Everything that the passes rely
on is checked here once, so that a broken or hostile file gives one line that says what is wrong.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import defs

from surgery.base.errors import PackageError, first_line
from surgery.base.files import brief, read_bytes

LARGEST_FILE = (1 << 31) - 1
"""Bytes of the largest protobuf message."""
OLDEST_OPSET = 7
"""First opset whose ops broadcast as today's do."""
MOST_NODES = 1 << 20
"""Nodes of a graph, its local functions inlined."""
LONGEST_NAME = 200
"""Characters of the name of a dimension."""
RUNTIME_OPS = ("LayerNormalization", "SimplifiedLayerNormalization")
"""Ops that onnxruntime adds to ONNX's own domain in opsets that lack them; its optimizers and the
model builder of onnxruntime-genai write them."""
POWER = re.compile(r"\*\*|\d{19}")
"""Parts of a dimension's name that an algebra system would compute for ever."""


def read_model(path: Path, own_data: bool = True) -> ir.Model:
    """Read an ONNX file and check it; external data is located, not read.

    Args:
        path: an ONNX file.
        own_data: whether its external data must lie in its own folder. False for a raw export,
            whose manifest says where the checkpoint is.

    Raises:
        PackageError: no such file, or no ONNX graph that can be worked on.
    """
    data = read_bytes(path, PackageError, LARGEST_FILE, f"{path}: no such file.")
    try:
        proto = onnx.ModelProto.FromString(data)
        for fault in faults(proto, path, own_data):
            raise PackageError(f"{path}: {fault}.")
        model: ir.Model = ir.from_proto(proto)
        if not in_order(proto.graph):
            model.graph.sort()
    except PackageError:
        raise
    except Exception as e:  # protobuf and onnx-ir raise exceptions of many types
        raise PackageError(f"{path}: no ONNX graph: {brief(first_line(e))}.") from e
    return model


def faults(proto: onnx.ModelProto, path: Path, own_data: bool) -> Iterator[str]:
    """What is wrong with a model, the first fault first."""
    if not proto.graph.node and not proto.graph.output:
        yield "no ONNX graph: it has neither nodes nor outputs"
    yield from opset_faults(proto)
    yield from function_faults(proto)
    for graph in graphs_of(proto):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            yield f"sparse initializer {brief(name)}: sparse tensors are not supported"
        yield from name_faults(graph)
        for node in graph.node:
            yield from node_faults(node, proto)
    yield from scope_faults(proto.graph, set())
    for tensor in tensors_of(proto):
        yield from tensor_faults(tensor, path, own_data)


def opset_faults(proto: onnx.ModelProto) -> Iterator[str]:
    """The version of ONNX's own ops must be stated and known."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    newest = defs.onnx_opset_version()
    if not versions:
        yield "states no opset version of the ONNX ops (opset_import)"
    elif not OLDEST_OPSET <= versions[0] <= newest:
        yield f"opset {versions[0]}, needs to be one of {OLDEST_OPSET} to {newest}"


def graphs_of(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all subgraphs, those of functions included."""
    stack = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while stack or nodes:
        if stack:
            graph = stack.pop()
            yield graph
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs


def function_faults(proto: onnx.ModelProto) -> Iterator[str]:
    """Local functions must not call themselves, nor inline to more than `MOST_NODES`."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    pending: set[tuple[str, str]] = set()

    def size(key: tuple[str, str]) -> int:
        if key not in sizes:
            if key in pending:
                raise RecursionError(f"function {brief(key[1])} calls itself")
            pending.add(key)
            sizes[key] = sum(one(node) for node in bodies[key].node)
        return sizes[key]

    def one(node: onnx.NodeProto) -> int:
        key = node.domain, node.op_type
        return size(key) if key in bodies else 1

    try:
        total = sum(one(node) for graph in graphs_of(proto) for node in graph.node)
    except RecursionError as e:
        yield first_line(e)
        return
    if total > MOST_NODES:
        yield f"{total:,} nodes, local functions inlined; {MOST_NODES:,} are supported"


def name_faults(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of dimensions must be names or short sums and products of names."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            name = dim.dim_param
            if len(name) > LONGEST_NAME or POWER.search(name):
                yield (
                    f"{brief(value.name)}: a dimension is named {brief(name)!r}, needs to be a "
                    f"name of at most {LONGEST_NAME} characters without powers"
                )


def node_faults(node: onnx.NodeProto, proto: onnx.ModelProto) -> Iterator[str]:
    """Inputs, outputs and attributes that an ONNX op requires must be there."""
    what = f"node {brief(node.name)}: {brief(node.op_type)}"
    if not any(node.output):
        yield f"{what} without an output"
    if node.domain not in ("", "ai.onnx"):
        return
    version = next(e.version for e in proto.opset_import if e.domain in ("", "ai.onnx"))
    try:
        schema = defs.get_schema(node.op_type, version, "")
    except defs.SchemaError:
        if node.op_type in RUNTIME_OPS:
            return
        if not any(f.name == node.op_type and f.domain == node.domain for f in proto.functions):
            yield f"node {brief(node.name)}: no op {brief(node.op_type)} in opset {version}"
        return
    yield from port_faults(node, schema, what)
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in given:
            yield f"{what} without its attribute {name}"


def port_faults(node: onnx.NodeProto, schema: defs.OpSchema, what: str) -> Iterator[str]:
    """An op must have the inputs that it requires, and no more inputs or outputs than it takes."""
    if len(node.input) > schema.max_input:
        yield f"{what} with {len(node.input)} inputs, takes {schema.max_input}"
    if len(node.output) > schema.max_output:
        yield f"{what} with {len(node.output)} outputs, makes {schema.max_output}"
    given = [*node.input, *[""] * len(schema.inputs)]
    for name, parameter in zip(given, schema.inputs, strict=False):
        optional = parameter.option == defs.OpSchema.FormalParameterOption.Optional
        if not name and not optional and parameter.min_arity:
            yield f"{what} without its input {parameter.name}"


def scope_faults(graph: onnx.GraphProto, outer: set[str]) -> Iterator[str]:
    """Every value that is read must be made somewhere, and made once."""
    made = [output for node in graph.node for output in node.output if output]
    given = {v.name for v in (*graph.input, *graph.initializer)}
    known = outer | given | set(made)
    if len(set(made)) != len(made) or given & set(made):
        twice = next(name for name in made if name in given or made.count(name) > 1)
        yield f"value {brief(twice)} is made twice"
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                yield f"node {brief(node.name)} reads {brief(name)}, which nothing makes"
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for part in (*inner, *attribute.graphs):
                yield from scope_faults(part, known)
    for value in graph.output:
        if value.name not in known:
            yield f"output {brief(value.name)} is made by no node"


def in_order(graph: onnx.GraphProto) -> bool:
    """Whether every node of the main graph comes behind those that it reads."""
    made = {output: place for place, node in enumerate(graph.node) for output in node.output}
    return all(
        made.get(name, -1) < place
        for place, node in enumerate(graph.node)
        for name in node.input
        if name
    )


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor: initializers and attributes."""
    functions = (node for function in proto.functions for node in function.node)
    for graph in graphs_of(proto):
        yield from graph.initializer
        for node in graph.node:
            yield from tensors_of_node(node)
    for node in functions:
        yield from tensors_of_node(node)


def tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """Tensors among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def tensor_faults(tensor: onnx.TensorProto, path: Path, own_data: bool) -> Iterator[str]:
    """A tensor's bytes must be there, as many as its type and shape make."""
    what = f"tensor {brief(tensor.name)}"
    if any(dim < 0 for dim in tensor.dims):
        yield f"{what}: shape {list(tensor.dims)}"
        return
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        yield f"{what}: unknown data type {tensor.data_type}"
        return
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return
    nbytes = math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if own_data:
            yield from external_faults(tensor, nbytes, path)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != nbytes:
        yield f"{what}: {len(tensor.raw_data):,} bytes, its type and shape make it {nbytes:,}"


def external_faults(tensor: onnx.TensorProto, nbytes: int, path: Path) -> Iterator[str]:
    """External data must lie in the graph's folder, and reach as far as the tensor needs.

    A link may lead out of the folder only where the graph's own file does: in the cache of the
    hub, both are links into one folder of blobs.
    """
    what = f"tensor {brief(tensor.name)}"
    about = {entry.key: entry.value for entry in tensor.external_data}
    location = about.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in location:
        yield f"{what}: its data lies at {brief(location)!r}, outside the folder of the graph"
        return
    file = path.parent / location
    try:
        offset, length = (int(about.get(key, default)) for key, default in
                          (("offset", "0"), ("length", str(nbytes))))  # fmt: skip
    except ValueError:
        yield f"{what}: offset or length of its data is no number"
        return
    if not file.is_file():
        yield f"{what}: its data file {brief(location)} is missing"
        return
    real = Path(os.path.realpath(file))
    homes = (Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent)
    if not any(real.is_relative_to(home) for home in homes):
        yield f"{what}: its data file {brief(location)} is a link out of the folder of the graph"
        return
    size = file.stat().st_size
    if length != nbytes:
        yield f"{what}: length {length:,}, its type and shape make it {nbytes:,} bytes"
    elif offset < 0 or offset + nbytes > size:
        yield f"{what}: ends at byte {offset + nbytes:,} of {brief(location)}, which has {size:,}"
