"""Trace a graph from a model without weights, then point its initializers into the checkpoint.

The model is on the meta device in float32, so tracing computes nothing and reads no weights. If a
checkpoint is in bfloat16 or float16, its initializers keep that dtype and a `Cast` to float32
follows each. The raw graph therefore computes what PyTorch computes with the weights loaded in
float32.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from transformers.utils import logging as hf_logging

from export_min import attention, experts
from export_min.checkpoint import Checkpoint, Weight
from export_min.families import Family
from export_min.graphs import Spec
from export_min.sizes import check_sizes, numbers, unstated, without_ignored
from surgery.base.errors import CheckpointError, first_line
from surgery.base.files import is_integer, shown

OPSET = 23
"""The first opset with the op `Attention`, which supports grouped heads and boolean masks."""

STATIC_ROPE = ("default", "linear", "yarn", "llama3")
"""Values of `rope_type` for which the frequencies do not depend on the length of the prompt."""

FOREIGN = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""Node metadata to remove: paths on the exporting machine, and dumps of torch's own graph."""


def load_config(checkpoint: Checkpoint, family: Family) -> Any:
    """Read the checkpoint's configuration with transformers and set its dtype to float32.

    Raises:
        CheckpointError: transformers rejects the configuration, or it cannot be exported.
    """
    check_parts(checkpoint, family)
    check_sizes(checkpoint)
    return resolved_config(checkpoint, family)


def check_parts(checkpoint: Checkpoint, family: Family) -> None:
    """Raise `CheckpointError` if config.json lacks an object that the family needs."""
    for part in family.parts:
        if not isinstance(checkpoint.config.get(part), dict):
            raise CheckpointError(f"{checkpoint.source}: config.json has no {part!r} object.")


def resolved_config(checkpoint: Checkpoint, family: Family) -> Any:
    """The configuration with the defaults of transformers; its sizes are not held to the shards.

    Raises:
        CheckpointError: as `load_config`.
    """
    given = copy.deepcopy(without_ignored(checkpoint.config))  # transformers edits its input
    for lack in unstated(given):
        raise CheckpointError(f"{checkpoint.source}: config.json has {lack}.")
    try:
        with quiet():  # it logs values of the configuration, which say what they like to a terminal
            config = family.model.config_class.from_dict(given)
    except Exception as e:  # the validators of transformers raise exceptions of any type
        message = " ".join(str(e).split())
        raise CheckpointError(f"{checkpoint.source}: config.json: {message}") from e
    try:
        kind = config.text_config.rope_parameters["rope_type"]
        if kind not in STATIC_ROPE:
            raise CheckpointError(
                f"{checkpoint.source}: rope_type is {shown(kind)}, whose frequencies change with "
                f"the length of the prompt; needs one of {', '.join(STATIC_ROPE)}."
            )
        for holds, fault in itertools.chain(rules(config), numbers(config), family.rules(config)):
            if not holds:
                raise CheckpointError(f"{checkpoint.source}: config.json: {fault}.")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{checkpoint.source}: config.json: a value of the wrong kind: {first_line(e)}."
        ) from e
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
    return config


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Yield the requirements on a configuration of any family, each with its error message.

    Each item is whether the requirement holds, and what the error says if it does not.
    """
    text, vision = config.text_config, config.vision_config
    sizes = {
        "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        "vision_config": ("hidden_size", "depth", "num_heads", "patch_size", "spatial_merge_size"),
    }
    for part, names in sizes.items():
        for name in names:
            value = getattr(getattr(config, part), name)
            yield is_integer(value) and value > 0, f"{part}.{name} is {shown(value)}"
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    yield (
        shared > 0 and heads % shared == 0,
        f"num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}",
    )
    name = "embed_dim" if hasattr(vision, "embed_dim") else "hidden_size"
    width = getattr(vision, name)
    yield (
        width % vision.num_heads == 0,
        f"vision_config.{name} {width} is not a multiple of num_heads {vision.num_heads}",
    )


def meta_model(family: Family, config: Any) -> Any:
    """Return the Hugging Face model on the meta device, but with real rotary frequencies.

    A checkpoint does not store the frequencies. The model computes them from the configuration,
    and the meta device would leave them without values.
    """
    with torch.device("meta"):
        model = family.model(config).eval()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(module.config).inv_freq
            if not bool(torch.isfinite(module.inv_freq).all()):
                raise ValueError("the rotary frequencies are not finite")
    return model


def expected_weights(family: Family, config: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight that a checkpoint of this configuration must hold.

    Raises:
        CheckpointError: transformers cannot build a model of this configuration.
    """
    try:
        with quiet():
            model = meta_model(family, config)
    except Exception as e:  # constructors raise exceptions of any type for values they reject
        message = " ".join(str(e).split())
        raise CheckpointError(
            f"config.json: transformers cannot build the model: {message}."
        ) from e
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def checked_weights(checkpoint: Checkpoint, family: Family, config: Any) -> dict[str, Weight]:
    """Return the checkpoint's weights by state-dict name, after checking names and shapes.

    A checkpoint with tied embeddings may store the head too. transformers ignores it, so it is no
    error.

    Raises:
        CheckpointError: names or shapes do not match the configuration.
    """
    expected = expected_weights(family, config)
    found = {family.rename(name): weight for name, weight in checkpoint.weights.items()}
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys() - {"lm_head.weight"})
    wrong = [
        name
        for name in expected.keys() & found.keys()
        if not family.fits(name, found[name].shape, expected[name])
    ]
    for names, what in (
        (missing, "missing from the shards"),
        (extra, "not expected by config.json"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{checkpoint.source}: {names[0]}{more}: {what}.")
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{checkpoint.source}: {name} has shape {list(found[name].shape)}, "
            f"config.json requires {list(expected[name])}."
        )
    return found


def trace(spec: Spec, model: Any) -> ir.Model:
    """Export one graph with torch.onnx. Initializers have their state-dict names and no data."""
    attention.register()
    experts.register()
    module = spec.module(model).eval()
    with quiet():
        program = torch.onnx.export(
            module,
            kwargs=spec.inputs,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # the optimizer would rename weights and merge equal ones
            verbose=False,
            dynamic_shapes=spec.dynamic,
            input_names=spec.input_names,
            output_names=spec.output_names,
        )
    assert program is not None
    graph_model: ir.Model = program.model
    graph_model.graph.name = spec.name
    drop_zero_bias(graph_model.graph)
    common.IdentityEliminationPass()(graph_model)
    common.RemoveUnusedNodesPass()(graph_model)
    for node in graph_model.graph:
        for key in FOREIGN:
            node.metadata_props.pop(key, None)
    return graph_model


def drop_zero_bias(graph: ir.Graph) -> None:
    """Remove the zero bias that torch.onnx adds to convolutions without a bias.

    For a Conv3d its shape has one axis too many, and onnxruntime refuses to run the graph.
    """
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) > 2:
            bias = node.inputs[2]
            if bias is not None and not bias.is_initializer():
                node.resize_inputs(2)


def attach(model: ir.Model, weights: Mapping[str, Weight], tied: bool) -> None:
    """Point every weight of `model` into the checkpoint; add a `Cast` unless it is float32.

    If the checkpoint stores a weight with its last two axes swapped, the `Transpose` that reads it
    is removed. A weight of the expected shape is never treated as swapped, even if it is square;
    transformers does the same.

    Args:
        model: a traced graph, changed in place.
        weights: the checkpoint's tensors by name.
        tied: whether the head is the embedding table, so that the checkpoint stores
            `lm_head.weight` under the name of that table.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        stored = name
        if tied and name == "lm_head.weight":
            stored = "model.language_model.embed_tokens.weight"
        if stored not in weights:
            continue  # a buffer that has data already, such as inv_freq
        weight = weights[stored]
        if stored != name:
            del graph.initializers[name]
            value.name = stored
            graph.initializers[stored] = value
        if weight.shape != tuple(value.shape or ()):
            turn(graph, value, weight.shape)
        value.const_value = weight.tensor(stored)
        if value.dtype != weight.dtype:
            cast(graph, value, weight.dtype)


def turn(graph: ir.Graph, weight: ir.Value, stored: tuple[int, ...]) -> None:
    """Set the shape of `weight` to `stored` and remove the `Transpose` nodes that read it.

    The weights that a checkpoint may store with swapped axes (`Family.turned`) are read only
    through a `Transpose` of their last two axes.
    """
    axes = list(range(len(stored)))
    axes[-2:] = axes[:-3:-1]
    weight.shape = ir.Shape(stored)
    for node in weight.consumers():
        perm = list(node.attributes.get_ints("perm", ()))
        assert (node.op_type, perm) == ("Transpose", axes), f"{node.op_type} reads {weight.name}"
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)


def cast(graph: ir.Graph, weight: ir.Value, stored: ir.DataType) -> None:
    """Set the dtype of `weight` to `stored` and insert a `Cast` to float32 before its consumers.

    After a `Gather` on the weight, the `Cast` follows the `Gather`: only the gathered rows of an
    embedding table are converted, not the whole table.
    """
    uses = list(weight.uses())
    weight.dtype = stored
    whole = [use for use in uses if not (use.node.op_type == "Gather" and use.idx == 0)]
    for use in uses:
        if use in whole:
            continue
        rows = use.node.outputs[0]
        node = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{use.node.name}_cast")
        node.outputs[0].name = f"{rows.name}_cast"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), rows.shape
        node.metadata_props.update(use.node.metadata_props)
        rows.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
        node.replace_input_with(0, rows)
        rows.dtype = stored
        graph.insert_after(use.node, node)
    if whole:
        node = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"{weight.name}_cast")
        node.outputs[0].name = f"{weight.name}_cast"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), weight.shape
        node.metadata_props.update(whole[0].node.metadata_props)
        for use in whole:
            use.node.replace_input_with(use.idx, node.outputs[0])
        graph.insert_before(graph[0], node)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of torch and transformers while the block runs.

    This changes the state of the whole process: log levels, warning filters and standard error.
    Other threads are silenced too.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    verbosity = hf_logging.get_verbosity()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
