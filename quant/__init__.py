"""Arrays to blocks: INT4 and INT8 block quantization of weight matrices in plain NumPy.

`quantize` is the definition, `quantize_rows` computes the same bytes many times faster, and
`dequantize` is what a runtime makes of them. The package knows no graph and no checkpoint.
"""

from quant.blocks import BlockFormat, Blocks, dequantize, pack, unpack
from quant.definition import quantize
from quant.errors import WeightError, weight_error
from quant.rows import quantize_parallel, quantize_rows

__all__ = [
    "BlockFormat",
    "Blocks",
    "WeightError",
    "dequantize",
    "pack",
    "quantize",
    "quantize_parallel",
    "quantize_rows",
    "unpack",
    "weight_error",
]
