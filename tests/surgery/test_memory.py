"""Writing a package holds a few blocks of rows, whatever the size of a matrix."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
import sys
from pathlib import Path
import onnx_ir as ir
import quant
from surgery.package.external_data import write_graphs
from surgery.rewrite.weights import Cast, Quantized, RowQuantized, RowTensor, Stored, Transposed

folder, kind = Path(sys.argv[1]), sys.argv[2]
rows, columns = 65536, 2560                                  # 335 MB in bf16, 671 MB in float32
file = folder / "shard.bin"
with file.open("wb") as f:
    f.truncate(rows * columns * 2)
stored = Stored(file, 0, ir.DataType.BFLOAT16, (rows, columns))
wide = Cast(stored, ir.DataType.FLOAT)
source = {
    "int4": Quantized(stored, quant.BlockFormat()),
    "float32": wide,
    "transposed": Cast(Transposed(stored), ir.DataType.FLOAT),
    "rows in int8": Transposed(RowQuantized(stored)),
}[kind]
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
@pytest.mark.parametrize("kind", ["int4", "float32", "transposed", "rows in int8"])
def test_a_large_matrix_streams(kind, tmp_path):
    """At most 128 MB of anonymous memory for a matrix of 671 MB in float32."""
    command = [sys.executable, "-c", CHILD, str(tmp_path), kind]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(out) < 128


WATCHED = """
import json, sys
sys.path.insert(0, "tests/bench")
from measure import measure
found = measure(sys.argv[1:])
print(json.dumps([found.code, found.anonymous // 10**6]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_both_commands_stay_small():
    """The two commands as processes, on a checkpoint of 1 GB with a table of 622 MB in bfloat16.

    The table in float32 is 1,245 MB, in int8 332 MB. Tracing takes 400 MB a process whatever the
    checkpoint, most of it PyTorch itself.
    """
    with tempfile.TemporaryDirectory() as name:  # pytest would keep its own for three runs
        checkpoint, raw, package = (f"{name}/{part}" for part in ("checkpoint", "raw", "package"))
        maker = [sys.executable, "tests/bench/make_checkpoint.py", checkpoint]
        options = ["--model", "2B", "--layers", "1", "--vision-layers", "3"]
        subprocess.run([*maker, *options], cwd=ROOT, check=True, capture_output=True)
        assert watched("export_min", "-i", checkpoint, "-o", raw) < 1000
        assert watched("surgery", "-i", raw, "-o", package) < 320


FORKED = """
import os, time
numbers = bytearray(b"1") * 10**8
if os.fork():
    time.sleep(0.5)
    os.wait()
else:
    time.sleep(0.5)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_of_a_parent_counts_once():
    """A child that has not begun a program of its own still has its parent's 100 MB."""
    child = [sys.executable, "-c", WATCHED, sys.executable, "-c", FORKED]
    out = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code, megabytes = json.loads(out)
    assert code == 0 and 100 <= megabytes < 150


def watched(*command):
    """Peak anonymous megabytes of `python -m`, child processes included."""
    child = [sys.executable, "-c", WATCHED, sys.executable, "-m", *command]
    out = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, check=True)
    code, megabytes = json.loads(out.stdout.splitlines()[-1])
    assert code == 0, out.stderr
    return megabytes
