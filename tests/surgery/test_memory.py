"""Writing a package holds a few blocks of rows, whatever the size of a matrix."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
import sys
from pathlib import Path
import onnx_ir as ir
import quant
from surgery.package.external_data import write_graphs
from surgery.weights import Cast, Quantized, RowTensor, Stored

folder, kind = Path(sys.argv[1]), sys.argv[2]
rows, columns = 65536, 2560                                  # 335 MB in bf16, 671 MB in float32
file = folder / "shard.bin"
with file.open("wb") as f:
    f.truncate(rows * columns * 2)
stored = Stored(file, 0, ir.DataType.BFLOAT16, (rows, columns))
wide = Cast(stored, ir.DataType.FLOAT)
source = Quantized(stored, quant.BlockFormat()) if kind == "int4" else wide
tensor = RowTensor(source, name="w")
value = ir.Value(name="w", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23}, name="g")

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

import threading, time
peak, done = [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
write_graphs({"g.onnx": ir.Model(graph, ir_version=10)}, folder, threads=2)
done.set()
thread.join()
print((peak[0] - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", ["int4", "float32"])
def test_a_large_matrix_streams(kind, tmp_path):
    """At most 128 MB of anonymous memory for a matrix of 671 MB in float32."""
    command = [sys.executable, "-c", CHILD, str(tmp_path), kind]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(out) < 128
