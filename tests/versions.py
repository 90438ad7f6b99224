"""Run the tests with the oldest or the newest libraries that pyproject.toml admits.

    python tests/versions.py lowest [-- PYTEST ARGUMENTS]
    python tests/versions.py newest [-- PYTEST ARGUMENTS]

Makes a virtual environment of its own in a temporary folder and installs into it, which needs the
network. "lowest" pins each dependency of the project to its lower bound; "newest" takes what pip
finds without constraints.txt, but for the torch that is installed here: it decides between builds
for a CPU and for CUDA, and is pinned to the version of constraints.txt.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> list[str]:
    """The dependencies of the project, those of the tests included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra: list[str] = project["optional-dependencies"]["test"]
    found: list[str] = project["dependencies"]
    return found + extra


def lowest() -> list[str]:
    """Each dependency of the project at its lower bound; the tools of the tests are not pinned.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = []
    for requirement in project["dependencies"]:
        match = re.match(r"([\w-]+)[^>]*>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement}: has no lower bound.")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def torch_pin() -> list[str]:
    """The torch of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("torch==")]


def main() -> int:
    """Install, print what was installed, and run pytest; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("lowest", "newest"))
    parser.add_argument("arguments", nargs="*", help="for pytest, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        environment, pins = Path(folder) / "venv", Path(folder) / "pins.txt"
        pins.write_text("\n".join(lowest() if args.which == "lowest" else torch_pin()) + "\n")
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        install = [python, "-m", "pip", "install", "-q", "-c", pins, *requirements()]
        subprocess.run(install, check=True)
        subprocess.run([python, "-m", "pip", "list"], check=True)
        tests = [python, "-m", "pytest", "-q", *(args.arguments or ["-n", "auto"])]
        return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
