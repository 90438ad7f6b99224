"""Budgets, patterns and roles."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from surgery.base.errors import UserError
from surgery.calibrate import job
from surgery.calibrate.plan import EIGHT, base_format, from_structure, in_eight_bits
from surgery.calibrate.roles import role
from surgery.match.products import linear


@pytest.fixture(scope="module")
def products(calibration):
    return linear(calibration.work.model, calibration.work.skip.__contains__)


def test_roles_of_the_demo(products):
    """Each of the seven matrices of a layer is told by the graph around it, not by its name."""
    found = Counter(role(product) for product in products)
    assert found == dict.fromkeys(("query", "key", "value", "out", "gate", "up", "down"), 4)
    words = {"query": "q_proj", "out": "o_proj", "key": "k_proj", "value": "v_proj"}
    for product in products:
        one = role(product)
        assert words.get(one, f"{one}_proj") in product.name


@pytest.mark.parametrize("bits", [4.4, 4.5, 5.0, 6.0, 8.25])
@pytest.mark.parametrize("keep", [None, "v_proj"])
def test_a_budget_is_kept(calibration, bits, keep):
    """More bits never cost more loss; what matches stays in float and takes none."""
    plan = job.decide(calibration.work, calibration.measured, bits, keep)
    assert 4 < plan.bits <= bits
    kept = {name for name, form in plan.formats.items() if form is None}
    assert kept == {name for name in plan.formats if keep and re.search(keep, name)}
    counted = [row for row in plan.rows if row.bits is not None]
    weights = sum(row.shape[0] * row.shape[1] for row in counted)
    assert 8 * sum(row.nbytes for row in counted) / weights == pytest.approx(plan.bits)
    assert sum(plan.share(row) for row in plan.rows) == pytest.approx(1)
    more = job.decide(calibration.work, calibration.measured, bits + 0.25, keep)
    assert more.loss <= plan.loss


def test_only_4_bit_weights_come_from_the_calibration(calibration):
    """A weight in 8 bits is rounded as it is written; one in float has no blocks."""
    plan = job.decide(calibration.work, calibration.measured, 5.0, "layers.0.*q_proj")
    kinds = Counter()
    for row in plan.rows:
        form, source = plan.formats[row.name], plan.source(row.name, *row.shape)
        kinds[form is not None and form.bits, source is not None] += 1
    assert kinds[4, True] and kinds[8, False] and kinds[False, False] == 1
    assert not kinds[4, False] and not kinds[8, True]


@pytest.mark.parametrize("measured", [True, False])
def test_a_budget_too_small_is_one_line_only_if_asked_for(calibration, products, measured):
    """The bits of a preset are a wish."""

    def plan(strict):
        if measured:
            return job.decide(calibration.work, calibration.measured, 3.0, None, strict)
        return from_structure(products, 3.0, strict=strict)

    with pytest.raises(UserError, match=r"^--bits 3: the smallest choices take 4\.\d+ bits"):
        plan(True)
    assert all(row.bits == 4 for row in plan(False).rows)


def test_a_pattern_that_is_none(products):
    with pytest.raises(UserError, match=r"--keep \(: no regular expression"):
        from_structure(products, 4.5, "(")


def test_structure_spends_on_values_first(products):
    """Without a forward pass, the values' weights are the first to get 8 bits."""
    plan = from_structure(products, 4.5)
    assert not plan.measured and 4 < plan.bits <= 4.5
    eight = [row.name for row in plan.rows if row.bits == EIGHT.bits]
    assert eight and all("v_proj" in name for name in eight[:1])


def test_eight_bits_for_all(products):
    """As many as blocks of 128 without zero points take, or smaller ones where those do not fit."""
    plan = in_eight_bits(products)
    assert list(plan.formats) == [product.name for product in products]
    for row in plan.rows:
        assert row.bits == 8 and row.block == base_format(row.shape[1]).block
        assert plan.formats[row.name].symmetric
    sizes = [row.shape[0] * row.shape[1] for row in plan.rows]
    bits = [size * (8 + 32 / row.block) for size, row in zip(sizes, plan.rows)]  # a scale a block
    assert plan.bits == pytest.approx(sum(bits) / sum(sizes))


@pytest.mark.parametrize(
    ("k", "limit", "block"),
    [(256, 128, 128), (192, 128, 64), (96, 128, 32), (80, 128, 16), (7, 128, 32), (128, 32, 32)],
)
def test_blocks_divide_rows(k, limit, block):
    assert base_format(k, block=limit).block == block
