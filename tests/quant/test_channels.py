"""Rows of 8 bits for integer products."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import quant

SHAPES = (1, 1), (3, 2), (5, 7), (24, 64), (16, 4304)


def weight(rng, shape, kind):
    normal = rng.standard_normal(shape).astype(np.float32)
    return {
        "normal": normal,
        "one sign": np.abs(normal),
        "equal": np.ones(shape, np.float32),
        "one large": np.where(np.arange(shape[1]) == 0, 100, normal).astype(np.float32),
        "tiny": normal * np.float32(1e-30),
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "one sign", "equal", "one large", "tiny"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_codes_of_which_no_two_overflow(rng, shape, kind):
    """Half a step off at most; 255 times two neighbours fits into 16 bits."""
    numbers = weight(rng, shape, kind)
    found = quant.quantize_channels(numbers)
    assert found.codes.dtype == np.int8 and found.scales.dtype == np.float32
    assert (np.abs(numbers - found.weight()) <= found.scales[:, None] * 0.501).all()
    codes = np.pad(found.codes.astype(int), ((0, 0), (0, shape[1] % 2)))
    assert np.abs(codes).max() <= 127
    assert 255 * np.abs(codes[:, 0::2] + codes[:, 1::2]).max() <= 2**15 - 1


def test_steps_are_no_coarser_than_needed(rng):
    """The largest code of a row, or that of two neighbours, is at its bound."""
    found = quant.quantize_channels(rng.standard_normal((64, 512)))
    codes = found.codes.astype(int)
    pairs = np.abs(codes[:, 0::2] + codes[:, 1::2]).max(1)
    assert (np.maximum(np.abs(codes).max(1), pairs) >= 126).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_stand_for_the_same_numbers(rng, shape):
    found = quant.quantize_channels(rng.standard_normal(shape))
    assert np.array_equal(quant.dequantize(found.blocks()), found.weight())


def test_rows_of_zeros(rng):
    found = quant.quantize_channels(np.zeros((2, 6), np.float16))
    assert not found.codes.any() and (found.scales == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    numbers = np.ones((3, 4), np.float32)
    numbers[1, 2] = bad
    with pytest.raises(ValueError, match="is not finite"):
        quant.quantize_channels(numbers)


def test_sums_of_the_largest_codes_are_exact():
    """In onnxruntime on this processor; those without VNNI saturate where two overflow.

    Without VNNI: qemu-x86_64 -cpu Haswell python -m pytest tests/quant/test_channels.py
    """
    n, k, rows = 32, 256, 5
    rng = np.random.default_rng(0)
    first = rng.integers(1, 128, (n, k // 2))
    codes = np.stack([first, 128 - first], -1).reshape(n, k).astype(np.int8)
    codes[::2] *= -1
    x = rng.integers(0, 256, (rows, k)).astype(np.uint8)
    x[::2] = 255
    values = {
        "x": ir.Value(name="x", shape=ir.Shape([rows, k]), type=ir.TensorType(ir.DataType.UINT8)),
    }
    constants = {
        "codes": np.ascontiguousarray(codes.T),
        "one": np.float32(1),
        "scales": np.ones(n, np.float32),
        "zero": np.uint8(128),
    }
    for name, array in constants.items():
        tensor = ir.tensor(array, name=name)
        values[name] = ir.Value(
            name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
        )
    inputs = [values[name] for name in ("x", "codes", "one", "scales", "zero")]
    node = ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].shape = "y", ir.Shape([rows, n])
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [values["x"]],
        node.outputs,
        nodes=[node],
        initializers=inputs[1:],
        opset_imports={"": 23, "com.microsoft": 1},
        name="product",
    )
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    (y,) = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.array_equal(y, (x.astype(int) - 128) @ codes.T.astype(int))
