"""Check an ONNX file from anybody before a pass sees it.

Protobuf accepts far more than a graph: an empty file, a node without its inputs, functions that
call each other a billion times, data files anywhere on the disk. Everything that the passes rely
on is checked here once, so that a broken or hostile file gives one line that says what is wrong.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import defs, helper

from surgery.base.errors import PackageError, first_line
from surgery.base.files import brief, read_bytes
from surgery.base.packed import buffers, packed_entries, without_packed

LARGEST_FILE = (1 << 31) - 1
"""Bytes of the largest protobuf message."""
OLDEST_OPSET = 7
"""First opset whose ops broadcast as today's do."""
MOST_NODES = 1 << 17
"""Nodes of a graph, its local functions inlined: a few kilobytes of functions make any number."""
LONGEST_NAME = 200
"""Characters of the name of a dimension."""
RUNTIME_OPS = ("LayerNormalization", "SimplifiedLayerNormalization")
"""Ops that onnxruntime adds to ONNX's own domain in opsets that lack them; its optimizers and the
model builder of onnxruntime-genai write them."""
PACKED = "packed_ends"
"""Key of a model's `meta`: where packed copies of weights, which are not loaded, end by file."""
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
        ends = packed_ends(proto)
        model: ir.Model = ir.from_proto(proto)
        model.meta[PACKED] = ends
        if not in_order(proto.graph):
            model.graph.sort()
    except PackageError:
        raise
    except Exception as e:  # protobuf and onnx-ir raise exceptions of many types
        cause: BaseException = e
        while cause.__cause__ is not None:  # onnx-ir says first where, last what
            cause = cause.__cause__
        raise PackageError(f"{path}: no ONNX graph: {first_line(cause).rstrip('.')}.") from e
    return model


def packed_ends(proto: onnx.ModelProto) -> dict[str, int]:
    """Drop what initializers say of packed copies; where these end, by data file."""
    ends: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        end = without_packed(tensor)
        if end:
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            ends[location] = max(end, ends.get(location, 0))
    return ends


def faults(proto: onnx.ModelProto, path: Path, own_data: bool) -> Iterator[str]:
    """What is wrong with a model, the first fault first."""
    if not proto.graph.node and not proto.graph.output:
        yield "no ONNX graph: it has neither nodes nor outputs"
    graphs: list[onnx.GraphProto] = []
    tensors: list[onnx.TensorProto] = []
    for part in parts_of(proto):
        yield from text_faults(part)
        graphs += [part] if isinstance(part, onnx.GraphProto) else []
        tensors += [part] if isinstance(part, onnx.TensorProto) else []
    yield from opset_faults(proto)
    bodies = {(f.domain, f.name): f for f in proto.functions}
    yield from function_faults(proto, graphs, bodies)
    opset = opset_of(proto.opset_import)
    for graph in graphs:
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            yield f"sparse initializer {brief(name)}: sparse tensors are not supported"
        yield from name_faults(graph)
        for node in graph.node:
            yield from node_faults(node, opset, bodies)
    yield from scope_faults(proto.graph, set())
    for tensor in tensors:
        yield from tensor_faults(tensor, path, own_data)


def parts_of(proto: Any) -> Iterator[Any]:
    """A message and every one inside it, wherever a file may have put them.

    Tensors stand in more places than initializers: attributes, values of sparse tensors, defaults
    of functions, training graphs. The numbers of a tensor are not looked at.
    """
    stack = [proto]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, onnx.TensorProto):
            stack.extend(part.external_data)
            continue
        for field, value in part.ListFields():
            if field.type == field.TYPE_MESSAGE:
                stack += [value] if hasattr(value, "ListFields") else value


def text_faults(part: Any) -> Iterator[str]:
    """Protobuf hands over as bytes what should be text and is not UTF-8."""
    if isinstance(part, onnx.TensorProto):
        texts: list[tuple[str, Any]] = [("name", part.name)]
    else:
        texts = [
            (field.name, text)
            for field, value in part.ListFields()
            if field.type == field.TYPE_STRING
            for text in ([value] if isinstance(value, str | bytes) else value)
        ]
    for name, text in texts:
        if isinstance(text, bytes):
            yield f"{name} {brief(repr(text))} is not UTF-8"


def opset_of(imports: Iterable[onnx.OperatorSetIdProto], default: int = 0) -> int:
    """The version of ONNX's own ops."""
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default)


def opset_faults(proto: onnx.ModelProto) -> Iterator[str]:
    """The version of ONNX's own ops must be stated and known."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    newest = defs.onnx_opset_version()
    if not versions:
        yield "states no opset version of the ONNX ops (opset_import)"
    elif not OLDEST_OPSET <= versions[0] <= newest:
        yield f"opset {versions[0]}, needs to be one of {OLDEST_OPSET} to {newest}"


def function_faults(
    proto: onnx.ModelProto,
    graphs: Iterable[onnx.GraphProto],
    bodies: Mapping[tuple[str, str], onnx.FunctionProto],
) -> Iterator[str]:
    """Local functions must be sound, of the model's opset where they are called, and not call
    themselves, nor inline to more than `MOST_NODES`."""
    sizes: dict[tuple[str, str], int] = {}
    pending: set[tuple[str, str]] = set()

    def size(key: tuple[str, str]) -> int:
        if key not in sizes:
            if key in pending:
                raise RecursionError(f"function {brief(key[1])} calls itself")
            pending.add(key)
            parts = parts_of(bodies[key])  # branches included
            sizes[key] = sum(one(part) for part in parts if isinstance(part, onnx.NodeProto))
        return sizes[key]

    def one(node: onnx.NodeProto) -> int:
        key = node.domain, node.op_type
        return size(key) if key in bodies else 1

    try:
        total = sum(one(node) for graph in graphs for node in graph.node)
    except RecursionError as e:
        yield first_line(e)
        return
    if total > MOST_NODES:
        yield f"{total:,} nodes, local functions inlined; {MOST_NODES:,} are supported"
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for key, function in bodies.items():
        what = f"function {brief(function.name)}"
        if key in sizes:
            for entry in function.opset_import:
                wanted = versions.get(entry.domain, entry.version)
                if entry.version != wanted:
                    yield f"{what}: opset {entry.version}, that of the model is {wanted}"
        yield from (f"{what}: {fault}" for fault in body_faults(function, proto, bodies))


def body_faults(
    function: onnx.FunctionProto,
    proto: onnx.ModelProto,
    bodies: Mapping[tuple[str, str], onnx.FunctionProto],
) -> Iterator[str]:
    """The nodes of a function are checked as those of a graph, and must be in order."""
    body = helper.make_graph(
        function.node,
        function.name,
        [onnx.ValueInfoProto(name=name) for name in function.input],
        [onnx.ValueInfoProto(name=name) for name in function.output],
    )
    opset = opset_of(function.opset_import, opset_of(proto.opset_import))
    attributes = {*function.attribute, *(a.name for a in function.attribute_proto)}
    for node in function.node:
        yield from node_faults(node, opset, bodies, attributes)
    yield from scope_faults(body, set())
    if not in_order(body):
        yield "a node stands before one that it reads"


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


def node_faults(
    node: onnx.NodeProto,
    opset: int,
    bodies: Mapping[tuple[str, str], onnx.FunctionProto],
    parameters: Collection[str] = (),
) -> Iterator[str]:
    """Inputs, outputs and attributes that an op requires must be there, and of the right type.

    Args:
        node: the node.
        opset: version of ONNX's own ops.
        bodies: local functions, by domain and name.
        parameters: attributes of the function that the node is in.
    """
    what = f"node {brief(node.name)}: {brief(node.op_type)}"
    if not any(node.output):
        yield f"{what} without an output"
    for name, count in Counter(attribute.name for attribute in node.attribute).items():
        if count > 1:
            yield f"{what} with {count} attributes {brief(name)}"
    for attribute in node.attribute:
        referred = attribute.ref_attr_name
        if referred and referred not in parameters:
            yield (
                f"{what}: its attribute {brief(attribute.name)} refers to {brief(referred)}, "
                "which no function around it has"
            )
    body = bodies.get((node.domain, node.op_type))
    if body is not None:
        for found, most, kind in (
            (node.input, body.input, "inputs"),
            (node.output, body.output, "outputs"),
        ):
            if len(found) > len(most):
                yield f"{what} with {len(found)} {kind}, the function has {len(most)}"
        return
    if node.domain not in ("", "ai.onnx"):
        return
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        if node.op_type not in RUNTIME_OPS:
            yield f"node {brief(node.name)}: no op {brief(node.op_type)} in opset {opset}"
        return
    yield from port_faults(node, schema, what)
    yield from attribute_faults(node, schema, what)


def attribute_faults(node: onnx.NodeProto, schema: defs.OpSchema, what: str) -> Iterator[str]:
    """Attributes that an op requires must be there, and all of the type that it wants."""
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, known in schema.attributes.items():
        if name in given:
            wanted = str(known.type).rpartition(".")[2]
            found = onnx.AttributeProto.AttributeType.Name(given[name].type)
            if found != wanted:
                yield f"{what}: its attribute {name} is of type {found}, needs to be {wanted}"
        elif known.required:
            yield f"{what} without its attribute {name}"
    if node.op_type == "Constant" and len(given) != 1:
        yield f"{what} with {len(given)} values, needs to have one"
    if node.op_type == "If":
        for attribute in given.values():
            if len(attribute.g.output) != len(node.output):
                yield (
                    f"{what} with {len(node.output)} outputs, its {brief(attribute.name)} has "
                    f"{len(attribute.g.output)}"
                )


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
    own = given | set(made)
    known = outer | own
    if len(set(made)) != len(made) or given & set(made):
        counts = Counter(made)
        twice = next(name for name in made if name in given or counts[name] > 1)
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
        elif value.name not in own:
            yield f"output {brief(value.name)} of a branch is made outside it; put Identity between"


def in_order(graph: onnx.GraphProto) -> bool:
    """Whether every node of the main graph comes behind those that it reads."""
    made = {output: place for place, node in enumerate(graph.node) for output in node.output}
    return all(
        made.get(name, -1) < place
        for place, node in enumerate(graph.node)
        for name in node.input
        if name
    )


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
    if dtype == ir.DataType.UNDEFINED:
        yield f"{what}: no data type"
        return
    text = dtype == ir.DataType.STRING
    nbytes = 0 if text else math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if text:
            yield f"{what}: strings in a data file"
        elif own_data:
            yield from external_faults(tensor, nbytes, path)
    elif not text and tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            yield f"{what}: {len(tensor.raw_data):,} bytes, its type and shape make it {nbytes:,}"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        found, wanted = len(getattr(tensor, field)), entries(tensor.dims, dtype)
        if found != wanted:
            yield f"{what}: {found:,} numbers in {field}, its type and shape make it {wanted:,}"


def entries(dims: Iterable[int], dtype: ir.DataType) -> int:
    """How many entries of a field a tensor has: two for a complex number, less where bits share."""
    size = math.prod(dims)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * size
    packed = dtype != ir.DataType.STRING and dtype.bitwidth < 8
    return math.ceil(size * dtype.bitwidth / 8) if packed else size


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
    for offset, length in buffers(packed_entries(tensor).values()):
        if offset + length > size:
            end = f"{offset + length:,} of {brief(location)}, which has {size:,}"
            yield f"{what}: its packed copy ends at byte {end}"
            return
