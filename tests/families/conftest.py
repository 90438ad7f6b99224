"""Each family's graph is exported once, kept in pytest's cache, and measured once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from export import exported
from measure import Result, measure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-table", action="store_true", help="rewrite tests/families/TABLE.md")


@pytest.fixture(scope="session")
def result(request: pytest.FixtureRequest) -> Callable[[str], Result]:
    """What the recipe does to a graph, by the graph's name."""
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("families")
    known: dict[str, Result] = {}

    def get(name: str) -> Result:
        if name not in known:
            known[name] = measure(name, exported(name, cache))
        return known[name]

    return get
