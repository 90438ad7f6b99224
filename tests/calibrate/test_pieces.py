"""A graph run piece by piece gives the numbers of the whole."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from weighted_graph import write

from surgery.calibrate.job import head_input
from surgery.calibrate.pieces import cut
from surgery.match.products import linear, product_of


@pytest.fixture(scope="module")
def whole(calibration, facts):
    """The decoder as one session whose only output is what the head reads."""
    model = calibration.work.model.clone()
    hidden, _ = head_input(model, calibration.work.head)
    model.graph.outputs[:] = [hidden]
    for node in reversed(list(model.graph)):
        if node is not hidden.producer() and not any(
            value.uses() or value.is_graph_output() for value in node.outputs
        ):
            model.graph.remove(node, safe=True)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    model.graph.sort()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def in_pieces(calibration, feeds):
    """What the last piece makes of some rows."""
    work = calibration.work
    hidden, _ = head_input(work.model, work.head)
    x = None
    for piece in cut(work.model, hidden, work.skip):
        weights = {product.name: product.matrix() for product in piece.products}
        given = feeds if x is None else {**feeds, piece.entering: x}
        (x,) = piece.run(given, weights, piece.leaving)
    return x


@pytest.mark.parametrize(("rows", "length", "past"), [(1, 1, 0), (3, 17, 0), (1, 5, 11)])
def test_pieces_are_the_whole(calibration, whole, rows, length, past):
    """On lengths that neither the export nor the calibration has seen, with a cache too."""
    rng = np.random.default_rng(rows + length)
    feeds = {}
    for port in whole.get_inputs():
        if port.name.startswith("past_key_values."):
            _, heads, _, width = port.shape
            shape = (rows, heads, past, width)
            feeds[port.name] = rng.standard_normal(shape).astype(np.float32)
        elif port.name == "attention_mask":
            feeds[port.name] = np.ones((rows, past + length), np.int64)
        elif port.name == "position_ids":
            feeds[port.name] = rng.integers(0, 99, (3, rows, length))
        else:
            width = port.shape[-1]
            feeds[port.name] = rng.standard_normal((rows, length, width)).astype(np.float32)
    (expected,) = whole.run(None, feeds)
    np.testing.assert_allclose(in_pieces(calibration, feeds), expected, rtol=2e-5, atol=2e-5)


def test_every_weight_is_in_one_piece(calibration):
    """All products but those to skip, each once, in order; a layer's MLP and attention apart."""
    work = calibration.work
    hidden, _ = head_input(work.model, work.head)
    pieces = list(cut(work.model, hidden, work.skip))
    names = [product.name for piece in pieces for product in piece.products]
    assert names == [product.name for product in linear(work.model, work.skip.__contains__)]
    assert [one.name for one in calibration.measured] == names
    assert all(a.leaves is b.enters for a, b in pairwise(pieces))
    assert len(pieces) >= 8  # the demo has four layers
    assert max(len(piece.products) for piece in pieces) <= 4  # also behind the last DeepStack level


def through(pieces, batch):
    """What the last piece makes of a batch."""
    out = None
    for piece in pieces:
        feeds = batch if piece.enters is None else {**batch, piece.entering: out}
        weights = {product.name: product.matrix() for product in piece.products}
        (out,) = piece.run(feeds, weights, piece.leaving)
    return out


def test_weights_to_skip_stay_in_the_graph(calibration):
    """A router's weight, say, is part of a piece and none of its products."""
    work = calibration.work
    hidden, _ = head_input(work.model, work.head)
    pieces = list(cut(work.model, hidden, work.skip))
    skipped = max(pieces, key=lambda piece: len(piece.products)).products[1].name
    again = list(cut(work.model, hidden, work.skip | {skipped}))
    assert skipped not in {product.name for piece in again for product in piece.products}
    expected, found = through(pieces, calibration.rows), through(again, calibration.rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_head_is_found_by_name(calibration):
    _, head = head_input(calibration.work.model, calibration.work.head)
    assert product_of(head.node) == head and head.name in calibration.work.head
    with pytest.raises(ValueError, match="no product with the head's weight, other"):
        head_input(calibration.work.model, frozenset({"other"}))


WIDE = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[rows, 64] x, float[64, 64] w_in, float[64, 16384] w_up, float[16384, 64] w_down)
      => (float[rows, 64] y) {
       stream = MatMul(x, w_in)
       wide = MatMul(stream, w_up)
       bent = Relu(wide)
       narrow = MatMul(bent, w_down)
       y = Add(stream, narrow)
    }
"""
CHILD = """
import sys
from pathlib import Path
import numpy as np
from surgery import load
from surgery.calibrate.pieces import cut

model = load(Path(sys.argv[1])).model

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

x, results = np.zeros((4096, 64), np.float32), []
for turn in range(3):
    *_, piece = cut(model, model.graph.outputs[0])
    weights = {product.name: product.matrix() for product in piece.products}
    results += piece.run({piece.entering: x}, weights, piece.leaving)
    piece.release()
    if turn == 0:
        before = anonymous()
print((anonymous() - before) // 1024, [one.shape for one in results])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_results_keep_their_own_memory_alone(tmp_path):
    """Activations between the products take 256 MB, what leaves the piece 1 MB each time."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(write(WIDE, tmp_path / "wide.onnx"))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    megabytes, shapes = done.stdout.split(maxsplit=1)
    assert shapes.strip() == str([(4096, 64)] * 3)
    assert int(megabytes) < 100
