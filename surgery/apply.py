"""Any ONNX graph, or a folder of them, through a generic recipe."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from surgery.base.console import console
from surgery.base.errors import PackageError, UserError
from surgery.base.staging import check_free, staged
from surgery.build import show
from surgery.engine import runner
from surgery.engine.facts import Facts, Options
from surgery.engine.recipes_generic import GENERIC
from surgery.engine.selection import known
from surgery.engine.upgrade import upgrade
from surgery.package.external_data import write_graphs

RECORD = "surgery.json"
"""Written beside the graphs: what was done, and that `--force` may replace it."""
WEIGHT = 1024
"""Bytes from which an initializer of floats counts as a weight: passes wrap it, none reads it."""

MOVES = ("Transpose", "Cast", "Identity")
"""Between a weight and its product."""
SHAPERS = (*MOVES, "Add", "Mul", "Div", "Tanh", "Slice", "Reshape")
"""Between the product with a head and the logits."""


@dataclass(frozen=True)
class Foreign(Facts):
    """What is known of a graph without its checkpoint: the user's choices, and its heads."""

    head_names: frozenset[str] = frozenset()

    def is_head(self, name: str) -> bool:
        """Whether a weight is a head."""
        return name in self.head_names

    @property
    def head_block(self) -> int:
        """That of every weight: how wide the head is, no configuration says."""
        return self.options.block_size


def facts(options: Options | None = None, model: ir.Model | None = None) -> Foreign:
    """Facts of a graph without a checkpoint."""
    names = frozenset() if model is None else heads(model)
    return Foreign(Path(), {}, options or Options(text_precision="fp32"), names)


def heads(model: ir.Model) -> frozenset[str]:
    """Names of the weights whose product is an output called logits, capped and scaled or not."""
    found = set()
    queue = [value for value in model.graph.outputs if "logits" in (value.name or "")]
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            weight = node.inputs[1]
            while weight is not None and (made := weight.producer()) is not None:
                weight = made.inputs[0] if made.op_type in MOVES else None
            found.add(weight.name or "" if weight is not None else "")
        elif node.op_type in SHAPERS:
            queue += [value for value in node.inputs if value is not None]
    return frozenset(found - {""})


def apply(
    source: str | Path,
    output: str | Path,
    recipe: str = "any",
    options: Options | None = None,
    force: bool = False,
    tell: Callable[[runner.Record, str], None] | None = None,
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
    paths = graphs(source)
    check_free(output, force)
    done: dict[str, list[dict[str, object]]] = {}
    models = {}
    with tempfile.TemporaryDirectory() as spill, staged(output, force) as stage:
        for path in paths:
            model = load(path, Path(spill))
            records = runner.run(path.stem, model, GENERIC[recipe], facts(options, model))
            done[path.name] = []
            for record in records:
                (tell or show)(record, "")
                done[path.name].append({"pass": record.name, "sites": record.sites})
            models[path.name] = model
        layout = write_graphs(models, stage)
        text = json.dumps({"recipe": recipe, "graphs": done}, indent=2) + "\n"
        (stage / RECORD).write_text(text, encoding="utf-8")
    total = sum(layout.sizes.values())
    console.print(f"wrote {output}: {len(models)} graphs, {total / 1e6:,.1f} MB of weights")
    return output


def graphs(source: Path) -> list[Path]:
    """The ONNX files meant.

    Raises:
        UserError: there is none.
    """
    if source.is_dir():
        found = sorted(source.glob("*.onnx"))
        if not found:
            raise UserError(f"{source}: no .onnx file in this folder.")
        return found
    if not source.is_file():
        raise PackageError(f"{source}: no such file.")
    return [source]


def load(path: Path, spill: Path, weight: int = WEIGHT) -> ir.Model:
    """Load a graph, upgraded; weights inside it move to a file, so that passes know them.

    Args:
        path: an ONNX file.
        spill: folder for the weights found inside.
        weight: bytes from which an initializer of floats is one.
    """
    model = upgrade(runner.load(path), path.parent)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    inside = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if is_weight(value, weight)
    ]
    tensors = [value.const_value for value in inside]
    moved = ir.external_data.convert_tensors_to_external(
        tensors,  # type: ignore[arg-type]
        spill,
        f"{path.stem}.inside",
    )
    for value, tensor in zip(inside, moved, strict=True):
        value.const_value = tensor
    return model


def is_weight(value: ir.Value, weight: int) -> bool:
    """Whether an initializer lies in the graph and is large enough for a weight."""
    tensor = value.const_value
    inside = tensor is not None and not isinstance(tensor, ir.ExternalTensor)
    return inside and tensor.dtype.is_floating_point() and tensor.nbytes >= weight  # type: ignore[union-attr]
