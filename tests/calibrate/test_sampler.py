"""Sampling is a function of the package and the seed."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.calibrate.sampler import Sampler


def drawn(package, seed):
    """A few rows of text and a prompt with a picture."""
    sampler = Sampler(package, seed)
    picture = next(iter(sampler.pictures(1, 6)))
    sampler.release()
    return [picture, *sampler.text(3, 12)], sampler


def test_one_seed_gives_the_same_tokens(package):
    (first, _), (second, _), (other, _) = (drawn(package, seed) for seed in (1, 1, 2))
    for a, b in zip(first, second, strict=True):
        for part in ("ids", "features", "places"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    assert any((a.ids != c.ids).any() for a, c in zip(first[1:], other[1:], strict=True))


def test_rows_start_documents_and_turns(package):
    """A picture's tokens come from pictures only, each with its feature."""
    (picture, *text), sampler = drawn(package, 3)
    starts = [part.ids[0].tolist() for part in text]
    assert starts[0][0] == sampler.model["bos_token_id"]
    assert starts[1][: len(sampler.user)] == sampler.user
    assert sum(len(part.ids) for part in text) == 3
    image = sampler.model["image_token_id"]
    assert not any((part.ids == image).any() for part in text)
    assert (picture.ids == image).sum() == len(picture.features) > 0
    assert picture.places.shape == (3, *picture.ids.shape)


def test_marks_of_pictures_are_never_drawn(package):
    """Not even where they are by far the likeliest."""
    from surgery.calibrate.sampler import Decoding

    sampler = Sampler(package)
    decoding = Decoding(sampler)
    logits = np.zeros((4, 4096), np.float32)
    logits[:, sampler.marks] = 1e4
    assert not np.isin(decoding.draw(logits), sampler.marks).any()
    assert (logits[:, sampler.marks] == np.float32(1e4)).all()


def test_pictures_come_before_release(package):
    sampler = Sampler(package)
    sampler.release()
    with pytest.raises(AssertionError, match="before release"):
        next(sampler.pictures(1, 1))
