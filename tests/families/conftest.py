"""Each family's graph is exported once, kept in pytest's cache, and measured once.

Small graphs are built and run as the tests of single passes do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from export import GRAPHS, exported
from graph_fixtures import Runner
from measure import Result, measure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-table",
        action="store_true",
        help="rewrite surgery/docs/models.md and the golden files",
    )
    parser.addoption(
        "--update-times", action="store_true", help="measure the times in the table of exporters"
    )
    parser.addoption(
        "--every-exporter", action="store_true", help="graphs that take minutes to export too"
    )
    parser.addoption(
        "--foreign", action="store_true", help="graphs and trained models out of packages too"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs packages that are installed by hand, unless it is asked for."""
    asked = config.getoption("--foreign", False)
    return True if collection_path.name == "test_elsewhere.py" and not asked else None


@pytest.fixture
def runner() -> type:
    """Runs a graph whose weights lie in files."""
    return Runner


@pytest.fixture(scope="session")
def result(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """What the recipe does to a graph, by the graph's name."""
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("families")
    known: dict[str, Result] = {}

    def get(name: str, graphs: Mapping[str, Any] = GRAPHS) -> Result:
        if name not in known:
            known[name] = measure(graphs[name], exported(name, graphs[name], cache))
        return known[name]

    return get
