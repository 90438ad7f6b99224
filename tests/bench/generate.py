"""Load, first token about a picture, and decoding speed, under several session options.

    python tests/bench/generate.py build/cpu-int4

Each line is a fresh process through onnxruntime-genai; ratios are against the runtime's own
defaults. Memory is anonymous memory and all resident memory, mapped weights included, at the end;
the cache is that of 1024 tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from surgery.package.genai_config import CPU_SESSIONS

CHILD = """
import io, json, sys, time
import numpy as np, onnxruntime_genai as og
from PIL import Image
start = time.perf_counter()
model = og.Model(sys.argv[1])
loaded = time.perf_counter()
picture = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
png = io.BytesIO()
Image.fromarray(picture).save(png, "PNG")
mark = "<|vision_start|><|image_pad|><|vision_end|>"
inputs = model.create_multimodal_processor()(
    f"<|im_start|>user\\n{mark}What is this?<|im_end|>\\n<|im_start|>assistant\\n",
    images=og.Images.open_bytes(png.getvalue()),
)
params = og.GeneratorParams(model)
params.set_search_options(max_length=1024, do_sample=False)
begin = time.perf_counter()
generator = og.Generator(model, params)
generator.set_inputs(inputs)
generator.generate_next_token()
first = time.perf_counter()
for _ in range(16):
    generator.generate_next_token()
end = time.perf_counter()
status = open("/proc/self/status").read()
memory = [int(status.split(f"{key}:")[1].split()[0]) * 1024 / 1e9 for key in ("RssAnon", "VmRSS")]
print(json.dumps([loaded - start, first - begin, 16 / (end - first), *memory]))
"""

SETTINGS: dict[str, dict[str, dict[str, Any]] | None] = {
    "runtime's defaults": {},
    "as packaged": None,
    "all cores everywhere": {
        name: {"intra_op_num_threads": 0} for name in ("decoder", "embedding", "vision")
    },
    "prepacked float32 vision": {
        "decoder": {"intra_op_num_threads": 0},
        "embedding": {"intra_op_num_threads": 1},
        "vision": {"intra_op_num_threads": 0},
    },
    "no arena for vision": CPU_SESSIONS
    | {"vision": CPU_SESSIONS["vision"] | {"enable_cpu_mem_arena": False}},
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("package", type=Path)
    p.add_argument("--rounds", type=int, default=2)
    args = p.parse_args()
    table = Table()
    for heading in (
        "options",
        "load s",
        "first token s",
        "x",
        "tokens/s",
        "x",
        "anonymous GB",
        "all GB",
    ):
        table.add_column(heading)
    base: list[float] = []
    for _ in range(args.rounds):
        for name, settings in SETTINGS.items():
            load, first, speed, *memory = run(args.package, settings)
            base = [first, speed] if name == "runtime's defaults" else base
            ratios = (f"{base[0] / first:.2f}", f"{speed / base[1]:.2f}")
            figures = (f"{load:.1f}", f"{first:.1f}", ratios[0], f"{speed:.1f}", ratios[1])
            table.add_row(name, *figures, *map("{:.2f}".format, memory))
    Console(width=100).print(table)


def run(package: Path, settings: dict[str, dict[str, Any]] | None) -> list[float]:
    """Run a package in a fresh process, its session options replaced; None keeps its own."""
    with tempfile.TemporaryDirectory(dir=package.parent) as name:
        folder = Path(name)
        for path in package.iterdir():
            (folder / path.name).hardlink_to(path)
        if settings is not None:
            config = json.loads((folder / "genai_config.json").read_text())
            for part in ("decoder", "embedding", "vision"):
                plain = {"log_id": "bench", "provider_options": []}
                config["model"][part]["session_options"] = plain | settings.get(part, {})
            (folder / "genai_config.json").unlink()
            (folder / "genai_config.json").write_text(json.dumps(config))
        out = subprocess.run([sys.executable, "-c", CHILD, name], capture_output=True, check=True)
    return [float(x) for x in json.loads(out.stdout)]


if __name__ == "__main__":
    main()
