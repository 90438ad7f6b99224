"""Sampling is a function of the package and the seed."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest

from surgery.calibrate.sampler import Sampler


def drawn(package, seed):
    """A few rows of text and a prompt with a picture."""
    sampler = Sampler(package, seed)
    answered = list(sampler.pictures(1, 6))
    sampler.release()
    (picture,) = sampler.encoded(answered)
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


FREED = """
from surgery.base.processes import return_memory

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

parts = [bytearray(b"1") * 60_000 for _ in range(2000)]  # below what the system is asked for alone
kept = bytearray(b"1") * 60_000  # keeps the end of the heap
full = anonymous()
del parts
return_memory()
print((full - anonymous()) // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing")
def test_freed_memory_is_returned():
    """120 MB in small pieces, before a piece that stays."""
    command = [sys.executable, "-c", FREED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80
