"""Trace a graph from a model without weights, then point its initializers into the checkpoint.

The model lives on the meta device in float32: tracing computes nothing and reads nothing. A
checkpoint in bfloat16 or float16 keeps its initializers as they lie, each followed by a `Cast`,
so that the raw graph computes what PyTorch does with the weights loaded in float32.
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
from surgery.base.errors import CheckpointError

OPSET = 23
"""The first opset with `Attention`, grouped and with a boolean mask."""


STATIC_ROPE = ("default", "linear", "yarn", "llama3")
"""Rotary embeddings whose frequencies follow from the configuration alone."""

FOREIGN = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""Node metadata with paths of the exporting machine, or of no use after the trace."""


def load_config(checkpoint: Checkpoint, family: Family) -> Any:
    """The checkpoint's configuration as transformers reads it, in float32.

    Raises:
        CheckpointError: transformers rejects the configuration, or a graph cannot hold it.
    """
    for part in family.parts:
        if not isinstance(checkpoint.config.get(part), dict):
            raise CheckpointError(f"{checkpoint.source}: config.json has no {part!r} object.")
    given = copy.deepcopy(checkpoint.config)  # transformers edits its input
    try:
        config = family.model.config_class.from_dict(given)
    except Exception as e:  # transformers raises whatever its field validators raise
        message = " ".join(str(e).split())
        raise CheckpointError(f"{checkpoint.source}: config.json: {message}") from e
    kind = config.text_config.rope_parameters["rope_type"]
    if kind not in STATIC_ROPE:
        raise CheckpointError(
            f"{checkpoint.source}: rope_type is {kind!r}, whose frequencies change with the length "
            f"of the prompt; needs one of {', '.join(STATIC_ROPE)}."
        )
    for holds, fault in itertools.chain(rules(config), family.rules(config)):
        if not holds:
            raise CheckpointError(f"{checkpoint.source}: config.json: {fault}.")
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
    return config


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """What has to hold of every family's configuration, and what to say where it does not."""
    text, vision = config.text_config, config.vision_config
    sizes = {
        "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        "vision_config": ("hidden_size", "depth", "num_heads", "patch_size", "spatial_merge_size"),
    }
    for part, names in sizes.items():
        for name in names:
            value = getattr(getattr(config, part), name)
            yield isinstance(value, int) and value > 0, f"{part}.{name} is {value}"
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    yield (
        shared > 0 and heads % shared == 0,
        f"num_attention_heads {heads} is no multiple of num_key_value_heads {shared}",
    )
    name = "embed_dim" if hasattr(vision, "embed_dim") else "hidden_size"
    width = getattr(vision, name)
    yield (
        width % vision.num_heads == 0,
        f"vision_config.{name} {width} is no multiple of num_heads {vision.num_heads}",
    )


def meta_model(family: Family, config: Any) -> Any:
    """The Hugging Face model on the meta device, its rotary frequencies real.

    Those are computed from the configuration, not stored in a checkpoint, so they have to be
    built where numbers exist.
    """
    with torch.device("meta"):
        model = family.model(config).eval()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(module.config).inv_freq
    return model


def expected_weights(family: Family, config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a checkpoint of this configuration holds.

    Raises:
        CheckpointError: transformers cannot build a model of this configuration.
    """
    try:
        with quiet():
            model = meta_model(family, config)
    except Exception as e:  # whatever a module's constructor raises for a value it does not know
        message = " ".join(str(e).split())
        raise CheckpointError(f"config.json: no model can be built: {message}.") from e
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def checked_weights(checkpoint: Checkpoint, family: Family, config: Any) -> dict[str, Weight]:
    """The checkpoint's weights by state-dict name, all there and of the right shape.

    A tied checkpoint may hold its head all the same; transformers ignores it, so it is allowed.

    Raises:
        CheckpointError: names or shapes disagree with the configuration.
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
    for names, what in ((missing, "missing from the shards"), (extra, "unknown to config.json")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{checkpoint.source}: {names[0]}{more} {what}.")
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{checkpoint.source}: {name} is {list(found[name].shape)}, "
            f"config.json makes it {list(expected[name])}."
        )
    return found


def trace(spec: Spec, model: Any) -> ir.Model:
    """Export one graph with torch.onnx; initializers keep their state-dict names, without data."""
    attention.register()
    experts.register()
    module = spec.module(model).eval()
    with quiet():
        program = torch.onnx.export(
            module,
            kwargs=spec.inputs,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # folding would rename the weights and merge equal ones
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
    """Leave out the bias of convolutions without: torch expands a zero, for Conv3d to a shape with
    an axis too many, which onnxruntime refuses to run."""
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) > 2:
            bias = node.inputs[2]
            if bias is not None and not bias.is_initializer():
                node.resize_inputs(2)


def attach(model: ir.Model, weights: Mapping[str, Weight], tied: bool) -> None:
    """Point every weight of `model` into the checkpoint, a `Cast` after each that is not float32.

    A weight that lies there with its last two axes swapped gets a `Transpose`, or loses the one
    that reads it. Equal shapes are never swapped, square ones included, as in transformers.

    Args:
        model: a traced graph, changed in place.
        weights: the checkpoint's tensors by name.
        tied: the head is the embedding table: `lm_head.weight` is stored under that name.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        stored = name
        if tied and name == "lm_head.weight":
            stored = "model.language_model.embed_tokens.weight"
        if stored not in weights:
            continue  # a buffer with numbers of its own, such as inv_freq
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
    """Let `weight` be of shape `stored`, and every reader see its last two axes swapped."""
    assert weight.shape is not None
    axes = list(range(len(stored)))
    axes[-2:] = axes[:-3:-1]
    shape, uses = weight.shape, list(weight.uses())
    weight.shape = ir.Shape(stored)
    whole = []
    for use in uses:
        perm = use.node.attributes.get_ints("perm", ())
        if use.node.op_type == "Transpose" and list(perm) == axes:
            use.node.outputs[0].replace_all_uses_with(weight)
            graph.remove(use.node, safe=True)
        else:
            whole.append(use)
    if whole:
        node = ir.node("Transpose", [weight], {"perm": axes}, name=f"{weight.name}_turned")
        node.outputs[0].name = f"{weight.name}_turned"
        node.outputs[0].type, node.outputs[0].shape = weight.type, shape
        node.metadata_props.update(whole[0].node.metadata_props)
        for use in whole:
            use.node.replace_input_with(use.idx, node.outputs[0])
        graph.insert_before(graph[0], node)


def cast(graph: ir.Graph, weight: ir.Value, stored: ir.DataType) -> None:
    """Let `weight` be of dtype `stored`, and every reader see it in float32.

    Rows that `Gather` picks are cast after the picking, or the whole embedding table would be.
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
    """Keep torch's and transformers' warnings about tracing from the user."""
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
