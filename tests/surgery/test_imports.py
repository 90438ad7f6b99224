"""Who may import whom: surgery and quant work without torch and without the exporter."""

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import quant
import surgery

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    module.name
    for package in (surgery, quant)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
FILES = sorted([*(ROOT / "surgery").glob("**/*.py"), *(ROOT / "quant").glob("**/*.py")])
EXPORTER = sorted((ROOT / "export_min").glob("**/*.py"))
SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    found = {"torch", "transformers", "export_min"} & set(sys.modules)
    assert not found, f"{name} imports {found}"
"""


def test_no_torch():
    """Every module in one process: none brings torch, transformers or the exporter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *MODULES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def imported(file):
    """Modules that a file imports from, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_one_way(file):
    """Data flows one way, in late imports too."""
    forbidden = {"torch", "transformers", "export_min"}
    if file.is_relative_to(ROOT / "quant"):
        forbidden |= {"surgery", "onnx", "onnx_ir", "onnxruntime"}
    assert not {name.partition(".")[0] for name in imported(file)} & forbidden


@pytest.mark.parametrize("file", EXPORTER, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_exporter_takes_from_the_common_room_alone(file):
    """Of `surgery`, `export_min` imports `surgery.base`."""
    taken = {name for name in imported(file) if name.partition(".")[0] == "surgery"}
    assert all(name.startswith("surgery.base.") for name in taken)
