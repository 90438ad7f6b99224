"""Execution providers that Python packages of their own bring to onnxruntime, as plugins."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Plugin:
    """An execution provider that is installed by itself.

    Attributes:
        module: the Python module that knows where the provider's library lies.
        package: the word for pip.
    """

    module: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.module) is not None


PLUGINS: Mapping[str, Plugin] = MappingProxyType(
    {"webgpu": Plugin("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu")}
)
"""Plugins by the provider's name in genai_config.json, in lower case."""


def named(config: Mapping[str, Any]) -> Iterator[str]:
    """The providers of a genai_config.json that are plugins, in lower case."""
    for section in config["model"].values():
        options = section.get("session_options", {}) if isinstance(section, dict) else {}
        for entry in options.get("provider_options", []):
            yield from (name.lower() for name in entry if name.lower() in PLUGINS)


def missing(config: Mapping[str, Any]) -> str:
    """What to install for a package's providers, as a sentence; "" where nothing is missing."""
    for name in named(config):
        if not PLUGINS[name].installed:
            return f"{name} needs a plugin of onnxruntime: pip install {PLUGINS[name].package}"
    return ""
