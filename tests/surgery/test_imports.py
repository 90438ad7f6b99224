"""Who may import whom. Late imports inside functions count like those at the top of a file."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import quant
import surgery

ROOT = Path(__file__).resolve().parents[2]

ARROWS: dict[str, set[str]] = {
    "quant": set(),
    "surgery.base": set(),
    "surgery.rewrite": {"quant", "surgery.base"},
    "surgery.match": {"surgery.rewrite"},
    "surgery.passes": {"quant", "surgery.match", "surgery.rewrite"},
    "surgery.calibrate": {
        *("quant", "surgery.answer", "surgery.base", "surgery.match", "surgery.rewrite"),
    },
    "surgery.engine": {
        *("quant", "surgery.base", "surgery.calibrate", "surgery.match", "surgery.passes"),
        "surgery.rewrite",
    },
    "surgery.package": {
        *("surgery.base", "surgery.calibrate", "surgery.engine", "surgery.match"),
        "surgery.rewrite",
    },
    "surgery.jobs": {
        *("surgery.answer", "surgery.base", "surgery.calibrate", "surgery.engine"),
        *("surgery.match", "surgery.package", "surgery.passes", "surgery.rewrite"),
    },
    "surgery.answer": {"surgery.base"},
    "surgery.verify": {
        *("quant", "surgery.answer", "surgery.base", "surgery.engine", "surgery.rewrite"),
    },
    "surgery.watch": {
        *("quant", "surgery.base", "surgery.engine", "surgery.jobs", "surgery.match"),
        *("surgery.package", "surgery.rewrite"),
    },
    "surgery.show": {"surgery.base", "surgery.engine", "surgery.rewrite", "surgery.watch"},
    "surgery.graph": {
        *("surgery.base", "surgery.engine", "surgery.jobs", "surgery.package", "surgery.rewrite"),
        "surgery.show",
    },
    "surgery.olive": {"surgery.base", "surgery.rewrite", "surgery.passes", "surgery.graph"},
    "surgery.commands": {
        *("surgery.answer", "surgery.base", "surgery.engine", "surgery.jobs", "surgery.show"),
        *("surgery.verify", "surgery.watch"),
    },
    "surgery.__main__": {"surgery.base"},
    "surgery": {
        *("surgery.answer", "surgery.base", "surgery.engine", "surgery.graph", "surgery.jobs"),
        *("surgery.passes", "surgery.verify", "surgery.watch"),
    },
    "export_min": {"surgery.base"},
}
"""Each room, and the rooms that its modules may import beside their own."""

HEAVY = {"torch", "transformers", "export_min"}
"""What no module of `surgery` and `quant` may bring into the process."""


def room(module: str) -> str:
    """The room of a module of ours, "" for other modules."""
    parts = module.split(".")
    if parts[0] in ("quant", "export_min"):
        return parts[0]
    if parts[0] != "surgery":
        return ""
    return ".".join(parts[:2])


def imported(file: Path) -> Iterator[str]:
    """Modules that a file imports; `from a import b` counts as both a and a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "surgery":
                yield from (f"surgery.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = sorted(
    path.relative_to(ROOT)
    for package in ("surgery", "quant", "export_min")
    for path in (ROOT / package).rglob("*.py")
)


def test_arrows() -> None:
    """Every import between rooms is in the table, and every arrow of the table is in use."""
    used: dict[str, set[str]] = {}
    wrong = []
    for file in FILES:
        module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        home = room(module)
        for name in imported(ROOT / file):
            other = room(name)
            if other and other != home:
                used.setdefault(home, set()).add(other)
                if other not in ARROWS[home]:
                    wrong.append(f"{file} imports {name}: {home} may not import {other}")
    assert not wrong, "\n".join(wrong)
    idle = {home: ARROWS[home] - used.get(home, set()) for home in ARROWS}
    assert not any(idle.values()), f"arrows that nothing uses: {idle}"


def test_the_table_has_no_circle() -> None:
    """Rooms can be put in an order in which each imports only those before it."""
    left = dict(ARROWS)
    while left:
        free = [name for name, others in left.items() if not others & left.keys()]
        assert free, f"circle among {sorted(left)}"
        for name in free:
            del left[name]


SCRIPT = f"""
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    found = {HEAVY!r} & set(sys.modules)
    assert not found, f"{{name}} imports {{found}}"
"""


def test_no_torch_at_run_time() -> None:
    """Every module in one process: none brings torch, transformers or the exporter."""
    modules = [
        module.name
        for package in (surgery, quant)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *modules], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_torch_in_late_imports() -> None:
    """Functions of `surgery` and `quant` do not import them either."""
    for file in FILES:
        if file.parts[0] != "export_min":
            tops = {name.partition(".")[0] for name in imported(ROOT / file)}
            assert not tops & HEAVY, file


def test_public_names_load_in_any_order() -> None:
    """`from surgery import NAME` gives the thing itself, also after its module was imported."""
    code = """
import sys
for name in sys.argv[1:]:
    for module in [m for m in sys.modules if m.partition(".")[0] == "surgery"]:
        del sys.modules[module]
    import surgery.graph, surgery.jobs.build
    scope = {}
    exec(f"from surgery import {name}", scope)
    thing = scope[name]
    assert thing.__name__.rpartition(".")[2] == name, (name, thing)
    assert name == "passes" or callable(thing), (name, thing)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *surgery.__all__],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
