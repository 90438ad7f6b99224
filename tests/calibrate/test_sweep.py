"""What a sweep keeps, measures and survives."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import quant
from surgery.base.errors import OutputError
from surgery.calibrate import job
from surgery.calibrate.job import head_input
from surgery.calibrate.pieces import cut
from surgery.calibrate.plan import EIGHT, base_format
from surgery.calibrate.sweep import Streams, divergence, observe
from surgery.rewrite.weights import Prepared

pytestmark = pytest.mark.nightly  # sweeps over the demo, which takes minutes


def files(work):
    """Bytes of everything that a finished calibration keeps."""
    return {
        path.relative_to(work.folder): path.read_bytes()
        for path in sorted(work.folder.rglob("*"))
        if path.is_file()
    }


class Stop(KeyboardInterrupt):
    """Ctrl-C behind a piece."""


@pytest.mark.parametrize("behind", [1, 3])
def test_an_interrupted_sweep_ends_the_same(calibration, elsewhere, behind):
    """Every byte that it leaves is that of a sweep in one go; finished pieces are not run again."""

    def stop(done, total):
        if done == behind:
            raise Stop

    with pytest.raises(Stop):
        job.sweep(elsewhere, calibration.batches, calibration.rows, stop)
    assert {"state.npz", "weights"} == {path.name for path in elsewhere.folder.iterdir()}
    seen = []
    measured = job.sweep(
        elsewhere, calibration.batches, calibration.rows, lambda done, total: seen.append(done)
    )
    assert seen[0] == behind and seen == sorted(seen)
    assert files(elsewhere) == files(calibration.work)
    assert measured == calibration.measured == elsewhere.kept.finished()


def test_batches_come_back(calibration, elsewhere):
    elsewhere.kept.save_batches(calibration.batches, calibration.rows)
    batches, rows = elsewhere.kept.batches()
    for found, expected in zip([*batches, rows], [*calibration.batches, calibration.rows]):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.npz", lambda path: path.write_bytes(path.read_bytes()[:1000])),
        ("state.npz", lambda path: path.write_bytes(b"")),
        ("weights", lambda path: next(path.iterdir()).write_bytes(b"cut")),
    ],
)
def test_a_broken_state_is_said_and_redone(calibration, elsewhere, capsys, name, damage):
    def stop(done, total):
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        job.sweep(elsewhere, calibration.batches, calibration.rows, stop)
    damage(elsewhere.folder / name)
    seen = []
    assert elsewhere.kept.state() is None
    line = capsys.readouterr().err.strip()
    assert "state.npz: cannot be used" in line and line.endswith("is done again")
    assert "\n" not in line
    job.sweep(elsewhere, calibration.batches, calibration.rows, lambda d, t: seen.append(d))
    assert seen[0] == 0
    assert files(elsewhere) == files(calibration.work)


def test_a_finished_one_without_its_weights_is_none(calibration, elsewhere):
    elsewhere.kept.finish(calibration.measured)
    assert elsewhere.kept.finished() is None


def test_a_full_disk_is_one_line(calibration, elsewhere, monkeypatch):
    def full(self, name, blocks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surgery.calibrate.store.Store.write", full)
    with pytest.raises(OutputError, match=r"cannot be kept: No space left.*goes on from there"):
        job.sweep(elsewhere, calibration.batches, calibration.rows)


def test_calibrated_codes_lose_less_than_rounding(calibration):
    """For every matrix, measured on its own inputs; and what the sweep wrote is what it judged."""
    work = calibration.work
    hidden, _ = head_input(work.model, work.head)
    stream, figures = [], {one.name: one for one in calibration.measured}
    for piece in cut(work.model, hidden, work.skip):
        weights = {product.name: product.matrix() for product in piece.products}
        seen = observe(piece, calibration.batches, weights, stream)
        stream = seen.leaving
        matrices = {name: total.estimate() for name, total in seen.sums.items()}
        for product in piece.products:
            weight, hessian = weights[product.name], matrices[product.input]
            n, k = weight.shape
            form = base_format(k)
            source = work.kept.store.source(product.name, form, n, k, work.scales)
            blocks = as_blocks(source, k)
            ours = quant.output_error(weight, blocks, hessian).squared_error
            plain = quant.output_error(weight, quant.quantize(weight, form), hessian)
            assert ours < plain.squared_error, product.name
            one = figures[product.name]
            np.testing.assert_allclose(one.candidates[form].error, ours, rtol=1e-6)
            assert one.candidates[EIGHT].error < ours


def as_blocks(source: Prepared, k: int) -> quant.Blocks:
    packed, scales, zero_points = source.read(0, source.parts[0][1][0])
    return quant.Blocks(packed, scales, zero_points, source.format, k)


def test_divergence_is_that_of_the_whole_logits():
    """The head in slices of a few rows, against a softmax over all of them."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((101, 16)).astype(np.float32)
    exact = rng.standard_normal((2, 5, 16)).astype(np.float32) * 3
    moved = {3: exact + rng.standard_normal(exact.shape).astype(np.float32) * 0.1, 7: exact}

    class Rows:
        parts = ((None, head.shape),)

        def read(self, start, stop):
            return (head[start:stop],)

    found = divergence(Streams([], exact, moved), Rows(), {}, piece=160)

    def log_p(x):
        z = (x.reshape(-1, 16) @ head.T).astype(np.float64)
        z -= z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    p, q = log_p(exact), log_p(moved[3])
    np.testing.assert_allclose(found[3], (np.exp(p) * (p - q)).sum(-1).mean(), rtol=1e-4)
    assert found[7] < 1e-9


def test_figures_survive_the_file(calibration):
    """What is read again is what was measured, losses included."""
    data = json.loads(calibration.work.kept.path("measured.json").read_text())
    assert [one["loss"] for one in data] == [one.loss for one in calibration.measured]
    assert sum(one.loss for one in calibration.measured) > 0


def test_float16_scales_are_kept_as_such(calibration, elsewhere):
    """For providers that compute in float16, errors are those of the rounded scales."""
    import onnx_ir as ir

    half = replace(elsewhere, scales=ir.DataType.FLOAT16)
    measured = job.sweep(half, calibration.batches, calibration.rows)
    one = measured[0]
    (n, k), form = one.shape, next(iter(one.candidates))
    blocks = as_blocks(half.kept.store.source(one.name, form, n, k, half.scales), k)
    assert blocks.scales.dtype == np.float16
    assert half.kept.finished() == measured
