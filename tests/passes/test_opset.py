"""An older opset."""

import numpy as np
import pytest

from surgery.passes.tidy.opset import Opset
from surgery.rewrite import view
from surgery.rewrite.contract import PassError

BEFORE = """
g (float[B,S,4] x, float[4] norm_weight) => (float[B,S,4] y) {
  gelu = Gelu(x)
  norm = LayerNormalization<axis = -1>(gelu, norm_weight)
  y = com.microsoft.QuickGelu(norm)
}
"""


def make():
    return Opset(21)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_older_already(build, untouched):
    untouched(Opset(23), build(BEFORE), "")


@pytest.mark.parametrize(("line", "message"), [
    ("RMSNormalization<axis = -1>(x, norm_weight)",
     "opset: RMSNormalization at model.layers.0.part is not in opset 21. Replace it by older ops "
     "first."),
    ("Cast<to = 1, round_mode = \"up\">(x)", "has round_mode, unknown in opset 21"),
])  # fmt: skip
def test_unknown_op(build, line, message):
    """An op or attribute that the older opset lacks is an error, and the graph stays as it is."""
    text = BEFORE.replace("Gelu(x)", line, 1)
    if "round_mode" in line:
        text = '<ir_version: 11, opset_import: ["": 24, "com.microsoft": 1]>\n' + text
    model = build(text)
    before = view.text(model)
    with pytest.raises(PassError) as error:
        make()(model)
    assert message in str(error.value)
    assert view.text(model) == before


def test_numbers(build, same_numbers, rng):
    inputs = [
        {"x": rng.standard_normal((*shape, 4)).astype(np.float32)}
        for shape in ((1, 1), (3, 5), (2, 9))
    ]
    same_numbers(make(), build(BEFORE), inputs)
