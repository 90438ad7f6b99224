"""Which tests share a process, where `pytest -n auto --dist loadgroup` spreads them over several.

What a folder exports and builds is made once a process, so a folder stays together. The end to end
tests are split by the configuration that they run. Those of `export_min` share nothing and those of
`bad_input` little: each file is a group.

Tests marked `nightly` repeat with more models what the others try with a few. They run with
`pytest --nightly`, together with the others; `pytest --nightly -m nightly` runs them alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["graph_fixtures"]

TESTS = Path(__file__).parent
CASES = ("case", "deep", "built")
"""Parameters of end to end tests that name a configuration."""
LONG = ("e2e", "families", "calibrate", "faults", "watch")
"""Folders whose groups take minutes, with few tests each. They start first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that asks for the nightly tests."""
    parser.addoption("--nightly", action="store_true", help="tests marked nightly, too")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and have pytest-xdist start groups in the order of the collected tests.

    By itself it starts those with the most tests first, which are not those that take longest.
    """
    config.addinivalue_line("markers", "nightly: runs with --nightly only")
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out nightly tests unless asked for, order the rest and mark each with its group."""
    if not config.getoption("--nightly"):
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in LONG)
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group(item)))


def group(item: pytest.Item) -> str:
    """The name of a test's group."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in ("bad_input", "export_min"):
        return f"{folder}/{item.path.stem}"
    if folder == "e2e":
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return f"{folder}/{next((parameters[c] for c in CASES if c in parameters), 'demo')}"
    return folder
