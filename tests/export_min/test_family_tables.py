"""What is exported can be packaged: both tables of families name the same ones."""

from __future__ import annotations

import pytest

from export_min import families
from surgery.engine.families import TRAITS


def test_same_families():
    assert set(families.FAMILIES) == set(TRAITS)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_module_is_that_architecture(kind):
    assert families.load(kind).model.__name__ == families.FAMILIES[kind]
