"""Shapes, dtypes and small integers that each op gives, from those that it takes.

An op without a rule gives what the exporter wrote down for it. `Known.numbers` follows the
arithmetic on shapes: it is what a value holds, where that is a few integers or lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import sympy

from surgery.match.lengths import (
    Length,
    Lengths,
    broadcast,
    equal,
    plain,
    product,
    quotient,
    together,
)

MANY = 64
"""Integers up to which a value's contents are followed."""
FAR = 1 << 31
"""Bounds of a slice at or above this mean "to the end"."""


@dataclass(frozen=True)
class Known:
    """What is known of a value.

    Attributes:
        shape: one length an axis; None where the rank is unknown.
        dtype: None where unknown.
        numbers: contents of an integer value of rank 0 or 1, in order; None where unknown.
    """

    shape: Lengths | None = None
    dtype: ir.DataType | None = None
    numbers: tuple[Length, ...] | None = None


NOTHING = Known()
Rule = Callable[[ir.Node, Sequence[Known]], Sequence[Known]]
INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


def axis_of(node: ir.Node, rank: int, default: int = 0, name: str = "axis") -> int:
    """An axis counted from the front."""
    axis = node.attributes.get_int(name, default)
    return axis + rank if axis < 0 else axis


def ints(known: Known) -> list[int] | None:
    """Contents, where all are numbers."""
    if known.numbers is None or not all(isinstance(n, int) for n in known.numbers):
        return None
    return [n for n in known.numbers if isinstance(n, int)]


def listed(node: ir.Node, given: Sequence[Known], name: str, at: int) -> list[int] | None:
    """Numbers given as an attribute by older opsets, as an input by newer ones."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    return ints(given[at]) if len(given) > at else None


def alike(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """The first input's shape and dtype."""
    return [Known(given[0].shape, given[0].dtype)] * len(node.outputs)


def elementwise(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Inputs broadcast to each other."""
    shape = broadcast([k.shape for k in given])
    dtype = next((k.dtype for k in given if k.dtype is not None), None)
    return [Known(shape, dtype, computed(node.op_type, given, shape))]


def compared(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Truth values of inputs that broadcast to each other."""
    (found,) = elementwise(node, given)
    return [Known(found.shape, BOOL, found.numbers)]


def computed(op: str, given: Sequence[Known], shape: Lengths | None) -> tuple[Length, ...] | None:
    """Arithmetic on lengths."""
    function = ARITHMETIC.get(op)
    if function is None or shape is None or len(shape) > 1:
        return None
    count = product(shape)
    if not isinstance(count, int) or count > MANY or any(k.numbers is None for k in given):
        return None
    columns = [(k.numbers or ()) * (count if len(k.numbers or ()) == 1 else 1) for k in given]
    if any(len(column) != count for column in columns):
        return None
    return tuple(function(*row) for row in zip(*columns, strict=True))


def add(a: Length, b: Length) -> Length:
    """The sum."""
    return None if a is None or b is None else plain(a + b)


def subtract(a: Length, b: Length) -> Length:
    """The difference."""
    return None if a is None or b is None else plain(a - b)


def multiply(a: Length, b: Length) -> Length:
    """The product."""
    return None if a is None or b is None else plain(a * b)


def divide(a: Length, b: Length) -> Length:
    """The quotient, rounded towards zero as ONNX does."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return int(a / b)
    return quotient(a, b)


def least(*lengths: Length) -> Length:
    """The smallest, where all are numbers or one length."""
    numbers = [n for n in lengths if isinstance(n, int)]
    return min(numbers) if len(numbers) == len(lengths) else one(lengths)


def most(*lengths: Length) -> Length:
    """The largest, where all are numbers or one length."""
    numbers = [n for n in lengths if isinstance(n, int)]
    return max(numbers) if len(numbers) == len(lengths) else one(lengths)


def one(lengths: Sequence[Length]) -> Length:
    """The one length that all are."""
    return lengths[0] if all(equal(lengths[0], n) for n in lengths[1:]) else None


def choose(condition: Length, yes: Length, no: Length) -> Length:
    """One of two, by a condition of 1 or 0."""
    if isinstance(condition, int):
        return yes if condition else no
    return yes if equal(yes, no) else None


def same(a: Length, b: Length) -> Length:
    """1 or 0, where it is sure; no axis has a length below zero."""
    if equal(a, b):
        return 1
    if isinstance(a, int) and isinstance(b, int):
        return 0
    number, other = (a, b) if isinstance(a, int) else (b, a)
    if isinstance(number, int) and number < 0 and isinstance(other, sympy.Expr):
        return 0 if other.is_nonnegative else None
    return None


def negated(a: Length) -> Length:
    """1 for 0, 0 for another number."""
    return (1 - bool(a)) if isinstance(a, int) else None


def remainder(a: Length, b: Length) -> Length:
    """a modulo b."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return a % b
    return 0 if quotient(a, b) is not None else None


ARITHMETIC: dict[str, Callable[..., Length]] = {
    "Add": add, "Sub": subtract, "Mul": multiply, "Div": divide, "Mod": remainder, "Min": least,
    "Max": most, "Where": choose, "Equal": same, "Not": negated,
}  # fmt: skip


def cast(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Another dtype; integers stay what they are."""
    to = ir.DataType(node.attributes["to"].as_int())
    whole = to.is_integer() or to == BOOL
    numbers = given[0].numbers if whole and given[0].dtype != BOOL else None
    return [Known(given[0].shape, to, numbers)]


def shape_of(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Lengths as numbers."""
    shape = given[0].shape
    if shape is None:
        return [Known((None,), INT64)]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    part = shape[slice(start, end)]
    return [Known((len(part),), INT64, part)]


def size(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """The number of elements."""
    total = product(given[0].shape) if given[0].shape is not None else None
    return [Known((), INT64, (total,))]


def gather(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Rows by number."""
    data, at = given[:2]
    if data.shape is None or at.shape is None:
        return [Known(None, data.dtype)]
    axis = axis_of(node, len(data.shape))
    shape = (*data.shape[:axis], *at.shape, *data.shape[axis + 1 :])
    where = ints(at)
    numbers = None
    if data.numbers is not None and where is not None and len(data.shape) == 1:
        fits = all(-len(data.numbers) <= i < len(data.numbers) for i in where)
        numbers = tuple(data.numbers[i] for i in where) if fits else None
    return [Known(shape, data.dtype, numbers)]


def concat(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Parts behind each other."""
    shapes = [k.shape for k in given if k.shape is not None]
    dtype = given[0].dtype
    if not shapes:
        return [Known(None, dtype)]
    axis = axis_of(node, len(shapes[0]))
    columns = [together(column) for column in zip(*shapes, strict=True)]
    whole: Length = 0
    for known in given:
        whole = add(whole, known.shape[axis] if known.shape is not None else None)
    columns[axis] = whole
    numbers: tuple[Length, ...] | None = ()
    for known in given:
        numbers = None if numbers is None or known.numbers is None else numbers + known.numbers
    return [Known(tuple(columns), dtype, numbers if len(columns) == 1 else None)]


def unsqueeze(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Axes of length 1 put in."""
    axes, shape = listed(node, given, "axes", 1), given[0].shape
    if axes is None or shape is None:
        return [Known(None, given[0].dtype)]
    rank = len(shape) + len(axes)
    where = {a + rank if a < 0 else a for a in axes}
    rest = iter(shape)
    out = tuple(1 if i in where else next(rest) for i in range(rank))
    return [Known(out, given[0].dtype, given[0].numbers if rank == 1 else None)]


def squeeze(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Axes of length 1 taken out."""
    shape = given[0].shape
    if shape is None:
        return [Known(None, given[0].dtype)]
    axes = listed(node, given, "axes", 1)
    if axes is None:
        if len(given) > 1 or None in shape:
            return [Known(None, given[0].dtype)]
        axes = [i for i, n in enumerate(shape) if n == 1]
    gone = {a % max(len(shape), 1) for a in axes}
    out = tuple(n for i, n in enumerate(shape) if i not in gone)
    return [Known(out, given[0].dtype, given[0].numbers)]


def cut(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """A slice: its length along each axis."""
    data = given[0]
    starts, ends = (listed(node, given, n, i) for n, i in (("starts", 1), ("ends", 2)))
    lasts = (given[2].numbers if len(given) > 2 else None) or (tuple(ends) if ends else None)
    firsts = (given[1].numbers if len(given) > 1 else None) or (tuple(starts) if starts else None)
    axes = listed(node, given, "axes", 3)
    steps = ints(given[4]) if len(given) > 4 else None
    if data.shape is None:
        return [Known(None, data.dtype)]
    if axes is None:
        absent = len(given) < 4 and "axes" not in node.attributes
        axes = list(range(len(firsts or ()))) if absent else None
    shape = list(data.shape)
    if axes is None:
        return [Known((None,) * len(shape), data.dtype)]
    numbers = data.numbers
    for i, axis in enumerate(axes):
        at = axis % len(shape)
        first, last = (p[i] if p is not None else None for p in (firsts, lasts))
        step = 1 if len(given) <= 4 else (steps[i] if steps is not None else None)
        whole = isinstance(first, int) and isinstance(last, int) and isinstance(step, int)
        if numbers is not None and whole and len(shape) == 1:
            numbers = numbers[slice(first, last, step)]
        else:
            numbers = None
        shape[at] = part(shape[at], first, last, step)
    return [Known(tuple(shape), data.dtype, numbers)]


def part(length: Length, first: Length, last: Length, step: int | None) -> Length:
    """The length of a slice."""
    if step is None or first is None or last is None:
        return None
    if isinstance(length, int) and isinstance(first, int) and isinstance(last, int):
        return len(range(*slice(first, last, step).indices(length)))
    if step != 1:
        return None
    begin = add(length, first) if isinstance(first, int) and first < 0 else first
    if isinstance(last, int) and last >= FAR:
        end = length
    elif isinstance(last, int) and last < 0:
        end = add(length, last)
    elif isinstance(last, int):
        return subtract(last, first) if isinstance(length, int) else None
    else:
        end = last
    return subtract(end, begin)


def reshape(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Lengths as asked for; 0 copies one, -1 takes what is left."""
    data, wanted = given[:2]
    if wanted.numbers is None:
        rank = wanted.shape[0] if wanted.shape is not None and len(wanted.shape) == 1 else None
        return [Known((None,) * rank if isinstance(rank, int) else None, data.dtype)]
    keeps = node.attributes.get_int("allowzero", 0) == 0
    shape: list[Length] = []
    for i, n in enumerate(wanted.numbers):
        copied = n == 0 and keeps
        inside = data.shape is not None and i < len(data.shape)
        shape.append((data.shape[i] if data.shape and inside else None) if copied else n)
    if -1 in shape:
        rest = product(n for n in shape if n != -1)
        whole = product(data.shape) if data.shape is not None else None
        shape[shape.index(-1)] = quotient(whole, rest)
    return [Known(tuple(shape), data.dtype, data.numbers if len(shape) < 2 else None)]


def expand(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Broadcast to a shape."""
    data, wanted = given[:2]
    if wanted.numbers is None:
        length = wanted.shape[0] if wanted.shape is not None and wanted.shape else None
        rank = max(length, len(data.shape)) if isinstance(length, int) and data.shape else None
        return [Known((None,) * rank if rank is not None else None, data.dtype)]
    shape = broadcast([wanted.numbers, data.shape])  # of two names, the one that is asked for
    numbers = None
    if data.numbers is not None and shape is not None and len(shape) == 1:
        count = shape[0]
        known = isinstance(count, int) and count <= MANY and len(data.numbers) == 1
        numbers = data.numbers * count if known and isinstance(count, int) else None
    return [Known(shape, data.dtype, numbers)]


def flatten(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Two axes: those before one, and the rest."""
    shape = given[0].shape
    if shape is None:
        return [Known((None, None), given[0].dtype)]
    axis = axis_of(node, len(shape), 1)
    return [Known((product(shape[:axis]), product(shape[axis:])), given[0].dtype)]


def tile(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Every axis so many times."""
    data, times = given[:2]
    if data.shape is None or times.numbers is None:
        return [Known((None,) * len(data.shape) if data.shape is not None else None, data.dtype)]
    pairs = zip(data.shape, times.numbers, strict=True)
    return [Known(tuple(multiply(n, k) for n, k in pairs), data.dtype)]


def spread(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """ConstantOfShape."""
    tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
    dtype = tensor.dtype if tensor is not None else ir.DataType.FLOAT
    shape = given[0].numbers
    if shape is None:
        return [Known(None, dtype)]
    count = product(shape) if len(shape) < 2 else None
    small = dtype.is_integer() and isinstance(count, int) and count <= MANY and tensor is not None
    numbers = None
    if small and tensor is not None and isinstance(count, int):
        numbers = (int(tensor.numpy().ravel()[0]),) * count
    return [Known(shape, dtype, numbers)]


def counted(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Range: steps of 1 alone give a length that can be named."""
    start, limit, delta = (k.numbers[0] if k.numbers else None for k in given)
    length = subtract(limit, start) if delta == 1 else None
    whole = isinstance(length, int) and length <= MANY and isinstance(start, int)
    numbers = None
    if whole and isinstance(start, int) and isinstance(length, int):
        numbers = tuple(range(start, start + length))
    return [Known((length,), given[0].dtype, numbers)]


def transpose(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Axes in another order."""
    shape = given[0].shape
    if shape is None:
        return [Known(None, given[0].dtype)]
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
    return [Known(tuple(shape[i] for i in perm), given[0].dtype)]


def matmul(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """A product of matrices, stacked or not."""
    a, b = given[0].shape, given[1].shape
    dtype = given[0].dtype
    if a is None or b is None or not a or not b:
        return [Known(None, dtype)]
    wide_a, wide_b = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    stack = broadcast([wide_a[:-2], wide_b[:-2]]) or ()
    rows = wide_a[-2:-1] if len(a) > 1 else ()
    columns = wide_b[-1:] if len(b) > 1 else ()
    return [Known((*stack, *rows, *columns), dtype)]


def gemm(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """A product of two matrices, and a sum."""
    a, b = given[0].shape, given[1].shape
    if a is None or b is None:
        return [Known((None, None), given[0].dtype)]
    rows = a[1] if node.attributes.get_int("transA", 0) else a[0]
    columns = b[0] if node.attributes.get_int("transB", 0) else b[1]
    return [Known((rows, columns), given[0].dtype)]


def reduced(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Some axes gone, or of length 1."""
    shape, dtype = given[0].shape, given[0].dtype
    if shape is None:
        return [Known(None, dtype)]
    kept = node.attributes.get_int("keepdims", 1) == 1
    if len(given) > 1 and given[1].numbers is None:
        return [Known((None,) * len(shape) if kept else None, dtype)]
    axes = listed(node, given, "axes", 1)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(len(shape)))
    gone = {a % max(len(shape), 1) for a in axes}
    out = tuple(1 if i in gone else n for i, n in enumerate(shape) if kept or i not in gone)
    return [Known(out, dtype)]


def selected(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """ArgMax and ArgMin."""
    shape = given[0].shape
    if shape is None:
        return [Known(None, INT64)]
    axis, kept = axis_of(node, len(shape)), node.attributes.get_int("keepdims", 1) == 1
    out = tuple(1 if i == axis else n for i, n in enumerate(shape) if kept or i != axis)
    return [Known(out, INT64)]


def where(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """One of two values at each place."""
    shape = broadcast([k.shape for k in given])
    return [Known(shape, given[1].dtype or given[2].dtype, computed("Where", given, shape))]


def split(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Parts along an axis."""
    shape, count = given[0].shape, len(node.outputs)
    if shape is None:
        return [Known(None, given[0].dtype)] * count
    axis = axis_of(node, len(shape))
    sizes: Sequence[Length] | None = listed(node, given, "split", 1)
    if sizes is None:
        whole = shape[axis]
        even = isinstance(whole, int) and len(given) < 2 and whole % count == 0
        sizes = [whole // count] * count if even and isinstance(whole, int) else [None] * count
    return [Known((*shape[:axis], n, *shape[axis + 1 :]), given[0].dtype) for n in sizes]


def conv(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Channels of the kernel, and places where it fits."""
    x, kernel = given[0].shape, given[1].shape
    if x is None or kernel is None:
        return [Known(None, given[0].dtype)]
    axes = len(x) - 2
    pads = node.attributes.get_ints("pads", (0,) * (2 * axes))
    strides = node.attributes.get_ints("strides", (1,) * axes)
    dilations = node.attributes.get_ints("dilations", (1,) * axes)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    places: list[Length] = []
    for i, (length, width) in enumerate(zip(x[2:], kernel[2:], strict=True)):
        if length is not None and auto in ("NOTSET", "VALID") and isinstance(width, int):
            room = length + pads[i] + pads[i + axes] - dilations[i] * (width - 1) - 1
            places.append(plain(sympy.floor(sympy.sympify(room) / strides[i]) + 1))
        else:
            places.append(None)
    return [Known((x[0], kernel[0], *places), given[0].dtype)]


def norm(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Like its input, and statistics with lengths of 1 from the axis on."""
    shape = given[0].shape
    if shape is None:
        return [Known(None, given[0].dtype)] * len(node.outputs)
    axis = axis_of(node, len(shape), -1)
    row = Known((*shape[:axis], *(1 for _ in shape[axis:])), ir.DataType.FLOAT)
    return [Known(shape, given[0].dtype), row, row][: len(node.outputs)]


def attention(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """ONNX's own, heads apart or joined; the cache where it has one."""
    query, key, value = (k.shape for k in given[:3])
    dtype = given[0].dtype
    if query is None or key is None or value is None:
        return [Known(None, dtype)] * len(node.outputs)
    if len(query) == 4:
        found = [Known((*query[:3], value[3]), dtype)]
    else:
        heads = node.attributes.get_int("q_num_heads", 0)
        kv_heads = node.attributes.get_int("kv_num_heads", 0) or 1
        width = quotient(value[2], kv_heads)
        found = [Known((*query[:2], multiply(width, heads)), dtype)]
    for past, new in zip(given[4:6], (key, value), strict=False):
        old = past.shape
        grown = (*old[:2], add(old[2], new[-2]), old[3]) if old is not None else None
        found.append(Known(grown, dtype))
    return (found + [NOTHING] * 3)[: len(node.outputs)]


def gather_nd(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Places by the numbers of their axes."""
    data, at = given[0].shape, given[1].shape
    last = at[-1] if at else None
    if data is None or at is None or not isinstance(last, int):
        return [Known(None, given[0].dtype)]
    batch = node.attributes.get_int("batch_dims", 0)
    return [Known((*at[:-1], *data[batch + last :]), given[0].dtype)]


def pooled(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """One number a channel."""
    shape = given[0].shape
    return [Known((*shape[:2], *(1 for _ in shape[2:])) if shape else None, given[0].dtype)]


def top(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """The k largest along an axis."""
    shape = given[0].shape
    if shape is None:
        return [Known(None, given[0].dtype), Known(None, INT64)]
    axis, k = axis_of(node, len(shape), -1), given[1].numbers
    out = (*shape[:axis], k[0] if k else None, *shape[axis + 1 :])
    return [Known(out, given[0].dtype), Known(out, INT64)]


def like_updates(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """GatherElements: the shape of the indices."""
    return [Known(given[1].shape, given[0].dtype)]


def embedded(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
    """Padded along each axis."""
    shape, pads = given[0].shape, listed(node, given, "pads", 1)
    if shape is None or pads is None or len(pads) != 2 * len(shape) or len(given) > 3:
        return [Known((None,) * len(shape) if shape is not None else None, given[0].dtype)]
    half = len(shape)
    out = tuple(add(n, pads[i] + pads[i + half]) for i, n in enumerate(shape))
    return [Known(out, given[0].dtype)]


def followed(rule: Rule) -> Rule:
    """A rule whose output holds what its first input holds."""

    def apply(node: ir.Node, given: Sequence[Known]) -> Sequence[Known]:
        (found,) = rule(node, given)
        return [replace(found, numbers=given[0].numbers)]

    return apply


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Pow"), elementwise),
    **dict.fromkeys(
        ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"), compared
    ),
    **dict.fromkeys(
        ("Abs", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
         "HardSigmoid", "LeakyRelu", "Log", "LogSoftmax", "Neg", "PRelu", "Reciprocal", "Relu",
         "Round", "RotaryEmbedding", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin",
         "Softmax", "Softplus", "Sqrt", "Tanh", "Tan", "TensorScatter", "Trilu",
         "BatchNormalization",
         "InstanceNormalization", "GroupNormalization", "QuickGelu", "FastGelu", "BiasGelu",
         "HardSwish", "Swish", "Mish"), alike
    ),
    **dict.fromkeys(("IsNaN", "IsInf", "Not"), compared),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2",
         "ReduceSumSquare"), reduced
    ),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), norm
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), selected),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), pooled),
    "Attention": attention,
    "Cast": cast,
    "Concat": concat,
    "ConstantOfShape": spread,
    "Conv": conv,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": like_updates,
    "GatherND": gather_nd,
    "Gemm": gemm,
    "Identity": followed(alike),
    "MatMul": matmul,
    "Pad": embedded,
    "Range": counted,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size,
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "TopK": top,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": where,
}  # fmt: skip
"""Rules by op type, of ONNX's own domain and onnxruntime's."""
