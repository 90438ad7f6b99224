"""Let onnxruntime-genai know the plugins that a package's graphs run on."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

from surgery.base.errors import PackageError, first_line
from surgery.base.plugins import PLUGINS, missing, named


def register_plugins(folder: Path, config: Mapping[str, Any]) -> None:
    """Let onnxruntime-genai know the plugins that a package's graphs run on.

    Which file is loaded is said by the installed Python package, never by the model's.

    Args:
        folder: the package, for messages.
        config: its genai_config.json.

    Raises:
        PackageError: a plugin is not installed, or the runtime cannot load it.
    """
    lacking = missing(config)
    if lacking:
        raise PackageError(f"{folder}: {lacking}")
    for name in named(config):
        try:
            register(PLUGINS[name].module)
        except Exception as e:  # the module's own, and what the runtime raises
            what = f"onnxruntime-genai cannot load {PLUGINS[name].package}"
            raise PackageError(f"{folder}: {what}: {first_line(e)}") from e


@functools.cache
def register(module: str) -> None:
    """Register a plugin once a process."""
    known = importlib.import_module(module)
    og.register_execution_provider_library(known.get_ep_name(), known.get_library_path())
