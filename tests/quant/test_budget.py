"""The choice of formats against trying all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quant import BlockFormat, Choice, spend

FOUR, EIGHT = BlockFormat(4, 32), BlockFormat(8, 32)


def test_by_hand() -> None:
    offers = {
        "a": [Choice(FOUR, 4, 10.0), Choice(EIGHT, 8, 2.0)],  # 2 a byte
        "b": [Choice(FOUR, 4, 10.0), Choice(EIGHT, 8, 6.0)],  # 1 a byte
        "c": [Choice(FOUR, 2, 7.0), Choice(EIGHT, 4, 1.0)],  # 3 a byte
    }
    weights = {"a": 8, "b": 8, "c": 4}
    for bits, larger, loss in ((4, "", 27), (5, "c", 21), (6.4, "ac", 13), (8, "abc", 9)):
        found = spend(offers, weights, bits)
        assert {n for n, c in found.choices.items() if c.format == EIGHT} == set(larger)
        assert found.loss == loss and found.bits <= bits
    assert list(found.choices) == ["a", "b", "c"] and found.nbytes == 20


def test_choices_above_the_hull_are_passed_over() -> None:
    small, dent, best = Choice(FOUR, 4, 10.0), Choice(FOUR, 6, 9.5), Choice(EIGHT, 8, 1.0)
    useless = Choice(FOUR, 5, 11.0)
    found = spend({"a": [dent, best, useless, small]}, {"a": 8}, 6)
    assert found.choices["a"] == small
    assert spend({"a": [dent, best, useless, small]}, {"a": 8}, 8).choices["a"] == best


def test_it_is_within_one_step_of_the_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        offers, largest = {}, 0.0
        for name in "abcdef":
            sizes = np.sort(rng.choice(np.arange(1, 30), 3, replace=False))
            losses = np.sort(rng.uniform(0, 10, 3))[::-1]
            offers[name] = [Choice(FOUR, int(s), float(x)) for s, x in zip(sizes, losses)]
            largest = max(largest, float(losses[0] - losses[-1]))
        least = sum(o[0].nbytes for o in offers.values())
        budget = least + int(rng.integers(0, 60))
        found = spend(offers, dict.fromkeys(offers, 1), 8 * budget / 6)
        best = min(
            sum(c.loss for c in chosen)
            for chosen in itertools.product(*offers.values())
            if sum(c.nbytes for c in chosen) <= budget
        )
        assert best <= found.loss + 1e-12 and found.loss <= best + largest
        assert found.nbytes <= budget


def test_the_order_of_choices_does_not_matter_and_ties_go_to_the_first() -> None:
    choices = [Choice(FOUR, 4, 2.0), Choice(EIGHT, 8, 1.0)]
    offers = {"x": choices, "b": choices[::-1], "c": choices}
    found = spend(offers, dict.fromkeys(offers, 8), 16 * 8 / 24)
    assert [c.nbytes for c in found.choices.values()] == [8, 4, 4]


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"take 4.000 bits a weight, more than the 3.9 allowed"):
        spend({"a": [Choice(FOUR, 4, 1.0)]}, {"a": 8}, 3.9)
    for offered in ([], [Choice(FOUR, 4, -1.0)], [Choice(FOUR, 4, float("nan"))]):
        with pytest.raises(ValueError, match="a needs choices"):
            spend({"a": offered}, {"a": 8}, 4)
