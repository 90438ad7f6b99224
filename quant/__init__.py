"""Arrays to blocks: 2, 4 and 8-bit block quantization of weight matrices in plain NumPy.

Each method is a function from a weight matrix to `Blocks`. `dequantize` is the inverse of all of
them, what a runtime makes of the blocks; `weight_error` and `output_error` say what was lost.

    quantize           rounding to nearest, the definition
    quantize_rows      the same bytes many times faster; `quantize_parallel` on all cores
    quantize_channels  rounding to 8 bits with one scale for each row
    search             scales and zero points with the least weighted error
    gptq               codes that make up for each other's error on given inputs
    descend            lowers that error further, code by code and scale by scale

`Hessian` gathers what the inputs say, `factor` prepares it, and `spend` chooses formats under a
budget. The package knows no graph and no checkpoint.
"""

from quant.blocks import BlockFormat, Blocks, dequantize, pack, unpack
from quant.budget import Choice, Spent, spend
from quant.channels import Channels, quantize_channels
from quant.compensation import gptq, gptq_definition
from quant.definition import quantize
from quant.descent import descend
from quant.errors import (
    BlockError,
    OutputError,
    WeightError,
    output_error,
    weight_error,
    worst_blocks,
)
from quant.hessian import Factor, Hessian, factor
from quant.rows import quantize_parallel, quantize_rows
from quant.weighted import search, search_block

__all__ = [
    "BlockError",
    "BlockFormat",
    "Blocks",
    "Channels",
    "Choice",
    "Factor",
    "Hessian",
    "OutputError",
    "Spent",
    "WeightError",
    "dequantize",
    "descend",
    "factor",
    "gptq",
    "gptq_definition",
    "output_error",
    "pack",
    "quantize",
    "quantize_channels",
    "quantize_parallel",
    "quantize_rows",
    "search",
    "search_block",
    "spend",
    "unpack",
    "weight_error",
    "worst_blocks",
]
