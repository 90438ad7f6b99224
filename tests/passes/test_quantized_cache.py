"""A cache in 8 bits."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.passes.attention.quantized_cache import QuantizedCache

KV, WIDTH = 2, 8
BEFORE = """
g (float[batch,sequence,32] q, float[batch,sequence,16] k, float[batch,sequence,16] v,
   int32[batch] last, int32 total, float[batch,2,past,8] past_key, float[batch,2,past,8] past_value)
=> (float[batch,sequence,32] y, float[batch,2,all,8] present_key,
    float[batch,2,all,8] present_value) {
  y, present_key, present_value = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>
    (q, k, v, past_key, past_value, last, total)
}
"""
MISSES = {
    "float16": ("float[batch,2,past,8] past_key", "float16[batch,2,past,8] past_key",
                "a cache in float32"),
    "no ranges": ("past_value", "other_value", "ranges of other_value"),
    "other heads": ("float[batch,2,past,8] past_key", "float[batch,1,past,8] past_key",
                    "ranges of shape"),
    "read twice": ("(q, k, v, past_key, past_value, last, total)\n", "(q, k, v, past_key, "
                   "past_value, last, total)\n  seen = Shape(past_key)\n", "the attention alone"),
    "computed": ("  y, present", "  moved = Neg(past_key)\n  y, present", ""),
}  # fmt: skip


def ranges(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"past_{kind}": rng.uniform(0.5, 4, (KV, WIDTH)).astype(np.float32)
        for kind in ("key", "value")
    }


def make():
    return QuantizedCache(ranges())


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize("case", MISSES)
def test_near_miss(build, untouched, case):
    old, new, why = MISSES[case]
    text = BEFORE.replace(old, new)
    text = text.replace("v, past_key", "v, moved") if case == "computed" else text
    text = text.replace("=> (", "=> (int64[4] seen, ") if case == "read twice" else text
    untouched(make(), build(text), why)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_ranges_are_numbers(build, untouched, wrong):
    broken = ranges()
    broken["past_key"][0, 0] = wrong
    untouched(QuantizedCache(broken), build(BEFORE), "finite ranges")


def steps(run, model, lengths, cache, rounded=lambda kind, x: x):
    """Outputs of a prompt and of the steps behind it, and the cache in the end.

    Args:
        run: runs a model.
        model: to run.
        lengths: tokens of each step.
        cache: dtype of the cache.
        rounded: what new keys and values become before they are handed to the model.
    """
    rng = np.random.default_rng(1)
    past = {name: np.zeros((1, KV, 0, WIDTH), cache) for name in ("past_key", "past_value")}
    found, seen = [], 0
    for new in lengths:
        seen += new
        q, k, v = (
            rng.standard_normal((1, new, width)).astype(np.float32) for width in (32, 16, 16)
        )
        feeds = {"q": q, "k": rounded("past_key", k), "v": rounded("past_value", v)}
        feeds |= {"last": np.array([seen - 1], np.int32), "total": np.array(seen, np.int32)}
        out = run(model, feeds | past)
        found.append(out["y"])
        past = {name: out[name.replace("past", "present")] for name in past}
    return np.concatenate(found, 1), past


def test_numbers(build, run):
    """Cached numbers are the float ones over the scales, rounded to nearest and clipped, and
    answers are those of float attention over them."""
    known = ranges()

    def rounded(name, x):
        scale = known[name].reshape(-1) / 127
        return (np.clip(np.rint(x / scale), -128, 127) * scale).astype(np.float32)

    exact, floats = steps(run, build(BEFORE), (5, 1, 3, 1), np.float32, rounded)
    after = build(BEFORE)
    QuantizedCache(known)(after)
    got, codes = steps(run, after, (5, 1, 3, 1), np.int8)
    for name, cached in floats.items():
        scale = known[name][None, :, None, :] / 127
        assert codes[name].dtype == np.int8
        assert np.abs(codes[name] * scale - cached).max() <= 1e-5
    assert any((np.abs(code) >= 127).any() for code in codes.values())
    assert np.abs(got - exact).max() <= 1e-4


def test_channels_of_zeros(build, run):
    """A channel that was never other than zero has a scale that works."""
    model = build(BEFORE)
    nothing = {name: np.zeros((KV, WIDTH), np.float32) for name in ("past_key", "past_value")}
    QuantizedCache(nothing)(model)
    assert model.graph.initializers["past_key.scale"].const_value.numpy().min() == 1
    got, _ = steps(run, model, (3, 1), np.int8)
    assert np.isfinite(got).all()


def test_ports_keep_names_and_shapes(build):
    model = build(BEFORE)
    before = [(v.name, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    make()(model)
    ports = [*model.graph.inputs, *model.graph.outputs]
    assert [(v.name, v.shape) for v in ports] == before
    cached = [v.dtype for v in ports if "past" in v.name or "present" in v.name]
    assert cached == [ir.DataType.INT8] * 4
