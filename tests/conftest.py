"""Which tests share a process, where `pytest -n auto --dist loadgroup` spreads them over several.

What a folder exports and builds is made once a process, so a folder stays together. The end to end
tests are split by the configuration that they run; those of `export_min` share nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["graph_fixtures"]

TESTS = Path(__file__).parent
CASES = ("case", "deep", "built")
"""Parameters of end to end tests that name a configuration."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its group."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group(item)))


def group(item: pytest.Item) -> str:
    """The name of a test's group."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder == "export_min":
        return f"{folder}/{item.path.stem}"
    if folder == "e2e":
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return f"{folder}/{next((parameters[c] for c in CASES if c in parameters), 'demo')}"
    return folder
