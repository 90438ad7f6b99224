"""Check that the graphs run in onnxruntime and that their results are consistent.

Several pictures in one call must give the results of one call for each. Decoding with the cache
must give the logits of one call on the whole prompt. A row of a batch must give the logits that it
gives alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from surgery.answer.trusted import PARTS
from surgery.base.errors import first_line
from surgery.engine.loading import load
from surgery.rewrite.float_activations import float_activations
from surgery.verify.finding import Finding, close
from surgery.verify.lengths import as_form, forms, labelled
from surgery.verify.opened import Opened, port
from surgery.verify.whole_head import with_whole_head

Array = npt.NDArray[Any]

IN_FLOAT, IN_HALF = 1e-4, 2e-2
"""Largest difference between two ways to compute the same, relative to the largest value: the
order of sums differs. Products with quantized weights are computed in float here."""

FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of onnxruntime: where the data files of a graph lie that is loaded from memory."""


class RunError(Exception):
    """A graph did not load or run. The message is that of onnxruntime."""


class Session:
    """A graph loaded in onnxruntime on the CPU.

    Products with quantized weights take activations as they are: rounded to int8, as the package
    runs them, results depend on the kernels for each number of rows, by up to 3 % of the largest
    logit through 28 layers of random weights on a processor without VNNI.
    """

    def __init__(self, path: Path, form: str = "") -> None:
        """Load a graph; of a decoder with two branches, one of its `forms`.

        Raises:
            RunError: onnxruntime cannot.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(FOLDER, str(path.parent))
        try:
            graph = in_float(path, form)
            self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises its own classes, derived from Exception
            raise RunError(first_line(e)) from e
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run the graph and return its outputs by name.

        Raises:
            RunError: the graph does not run.
        """
        try:
            return dict(zip(self.outputs, self.session.run(None, feed)))
        except Exception as e:
            raise RunError(first_line(e)) from e


def in_float(path: Path, form: str = "") -> bytes:
    """A graph whose kernels do not round activations."""
    model = load(path)
    float_activations(model)
    proto = ir.to_proto(model)
    as_form(form)(proto.graph)
    with_whole_head(proto.graph)
    return bytes(proto.SerializeToString())


def tolerance(package: Opened, part: str) -> float:
    """`IN_HALF` for a graph that computes in float16 somewhere, `IN_FLOAT` for any other."""
    model = package.graphs[part]
    ports = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    nodes = (node for graph in model.graphs() for node in graph)
    casts = {node.attributes.get_int("to", 0) for node in nodes if node.op_type == "Cast"}
    half = ir.DataType.FLOAT16
    return IN_HALF if half in ports or half in casts else IN_FLOAT


def check_graphs(package: Opened) -> Iterator[Finding]:
    """Run the three graphs in turn, each with the results of the one before."""
    name = "vision"
    try:
        features: list[Array] = []
        for name, check in zip(PARTS, (check_vision, check_embedding, check_decoder)):
            for form in forms(package) if name == "decoder" else ("",):
                session = Session(package.path(name), form)
                for finding in check(package, session, features):
                    yield replace(finding, what=labelled(finding.what, form))
    except RunError as e:
        file = package.path(name).name
        if package.provider != "cpu" and "NOT_IMPLEMENTED" in str(e):
            yield Finding(
                file, f"not run: built for {package.provider}, and the CPU lacks a kernel"
            )
        else:
            yield Finding(file, problem=f"does not run: {e}")


def dtype(package: Opened, part: str, name: str) -> Any:
    """Return the NumPy dtype of a graph input."""
    value = port(package.graphs[part], name)
    assert value is not None
    found = value.dtype
    assert found is not None
    return found.numpy()


def check_vision(package: Opened, session: Session, features: list[Array]) -> Iterator[Finding]:
    """Run the vision graph on several grids, alone and in one call.

    Afterwards `features` holds the features of the first grid.
    """
    section = package.model["vision"]
    merge = int(section["spatial_merge_size"])
    names, out = section["inputs"], section["outputs"]["image_features"]
    pixels = port(package.graphs["vision"], names["pixel_values"])
    assert pixels is not None and pixels.shape is not None
    patch = int(pixels.shape[1])  # type: ignore[arg-type]
    kind = dtype(package, "vision", names["pixel_values"])
    grids = [(1, 2 * merge, 3 * merge), (2, 2 * merge, merge), (1, merge, merge)]
    if package.grid is not None:
        grids = [package.grid]
    rng = np.random.default_rng(0)
    pictures = [rng.uniform(-1, 1, (t * h * w, patch)).astype(kind) for t, h, w in grids]

    def run(chosen: Sequence[int]) -> Array:
        feed = {
            names["pixel_values"]: np.concatenate([pictures[i] for i in chosen]),
            names["image_grid_thw"]: np.array([grids[i] for i in chosen], np.int64),
        }
        known = {v.name for v in session.session.get_inputs()}
        return session({k: v for k, v in feed.items() if k in known})[out]

    alone = [run([i]) for i in range(len(grids))]
    features.append(alone[0])
    rows = [t * h * w // merge**2 for t, h, w in grids]
    fault = next(
        (
            f"grid {grid} gives {len(a)} rows, needs to give {n}"
            for grid, a, n in zip(grids, alone, rows)
            if len(a) != n
        ),
        "" if all(np.isfinite(a).all() for a in alone) else "some values are not finite",
    )
    yield Finding("vision", f"{len(grids)} grids run", fault)
    if len(grids) > 1:
        together = run(range(len(grids)))
        scale = float(max(abs(a).max() for a in alone))
        difference = float(abs(together - np.concatenate(alone)).max())
        yield close("vision, all in one call", difference, scale, tolerance(package, "vision"))


def check_embedding(package: Opened, session: Session, features: list[Array]) -> Iterator[Finding]:
    """Run the embedding graph with and without a picture.

    Afterwards `features` holds the outputs without a picture, then those with one.
    """
    section, image = package.model["embedding"], int(package.model["image_token_id"])
    (found,) = features
    features.clear()
    rng = np.random.default_rng(1)
    text = rng.integers(0, image, (1, 8))
    marked = np.concatenate([text[:, :3], np.full((1, len(found)), image), text[:, 3:]], 1)
    kinds = set()
    for ids, rows in ((text, found[:0]), (marked, found)):
        feed = {section["inputs"]["input_ids"]: ids.astype(np.int64)}
        feed[section["inputs"]["image_features"]] = rows
        out = session(feed)
        features += [out[name] for name in section["outputs"].values()]
        kinds |= {bool(np.isfinite(value).all()) for value in out.values()}
    merged = features[len(section["outputs"])][0, 3 : 3 + len(found)]
    exact = np.array_equal(merged, found[:, : merged.shape[-1]])
    fault = "" if exact else "the embeddings of image tokens are not the image features"
    yield Finding(
        "embedding",
        "with and without a picture",
        fault or ("" if kinds == {True} else "some values are not finite"),
    )


def check_decoder(package: Opened, session: Session, features: list[Array]) -> Iterator[Finding]:
    """Run the decoder at once, with its cache, and on a batch, and compare the logits."""
    part = package.model["decoder"]
    names = [n for n in package.model["embedding"]["outputs"] if n in part["inputs"]]
    count = len(features) // 2
    embedded = {part["inputs"][n]: v for n, v in zip(names, features[count:])}
    decoder = Decoder(package, session)
    length = features[count].shape[1]
    whole, _ = decoder(embedded)
    split = length - 2
    logits, past = decoder({k: v[:, :split] for k, v in embedded.items()})
    for i in range(split, length):
        logits, past = decoder({k: v[:, i : i + 1] for k, v in embedded.items()}, past)
    scale, most = float(abs(whole).max()), tolerance(package, "decoder")
    if not np.isfinite(whole).all():
        yield Finding("decoder", problem="logits are not finite")
        return
    yield Finding("decoder", f"{length} tokens at once")
    yield close("decoder, with its cache", float(abs(logits - whole).max()), scale, most)
    batch = {k: np.concatenate([v, v[:, ::-1], v]) for k, v in embedded.items()}
    first, past = decoder({k: v[:, :split] for k, v in batch.items()})
    for i in range(split, length):
        first, past = decoder({k: v[:, i : i + 1] for k, v in batch.items()}, past)
    difference = float(abs(first[[0, 2]] - whole).max())
    yield close("decoder, batch of 3", difference, scale, most)


class Decoder:
    """Runs the decoder graph on embeddings, with the position ids of text."""

    def __init__(self, package: Opened, session: Session) -> None:
        self.session, self.part = session, package.model["decoder"]
        layers = range(int(self.part["num_hidden_layers"]))
        inputs, outputs = self.part["inputs"], self.part["outputs"]
        kinds = ("key", "value")
        self.past = [inputs[f"past_{k}_names"].replace("%d", str(i)) for i in layers for k in kinds]
        self.present = [
            outputs[f"present_{k}_names"].replace("%d", str(i)) for i in layers for k in kinds
        ]
        self.dtype = dtype(package, "decoder", self.past[0])

    def __call__(
        self, embedded: dict[str, Array], past: list[Array] | None = None
    ) -> tuple[Array, list[Array]]:
        """Return the logits of the last position, `[B, V]`, and the new cache."""
        batch, new = next(iter(embedded.values())).shape[:2]
        if past is None:
            shape = (batch, self.part["num_key_value_heads"], 0, self.part["head_size"])
            past = [np.zeros(shape, self.dtype) for _ in self.past]
        old = past[0].shape[2]
        positions = np.broadcast_to(np.arange(old, old + new), (3, batch, new))
        feed = {
            **embedded,
            self.part["inputs"]["attention_mask"]: np.ones((batch, old + new), np.int64),
            self.part["inputs"]["position_ids"]: np.ascontiguousarray(positions),
            **dict(zip(self.past, past)),
        }
        out = self.session({k: np.ascontiguousarray(v) for k, v in feed.items()})
        logits = out[self.part["outputs"]["logits"]][:, -1].astype(np.float32)
        return logits, [out[name] for name in self.present]
