"""Positions of tokens on the three axes of multimodal rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def positions(
    ids: Sequence[int], image: int, grids: Sequence[tuple[int, int, int]], merge: int
) -> npt.NDArray[np.int64]:
    """Temporal, height and width position of each token of one prompt.

    Text counts up on all axes. The tokens of a picture share one temporal position and take their
    row and column in the merged grid, from the position behind the text; text goes on behind the
    largest of them (`get_rope_index` of Qwen2-VL and its successors in transformers).

    Args:
        ids: token ids, [S].
        image: id of the placeholder of a picture.
        grids: (t, h, w) in patches of each picture, in order; t is 1.
        merge: patches along each side of the square that makes one token.

    Returns:
        int64 [3, S].
    """
    found = np.empty((3, len(ids)), np.int64)
    place, following = 0, 0
    pending = list(grids)
    while place < len(ids):
        if ids[place] != image:
            found[:, place] = following
            place, following = place + 1, following + 1
            continue
        _, h, w = pending.pop(0)
        h, w = h // merge, w // merge
        rows, columns = np.divmod(np.arange(h * w), w)
        part = slice(place, place + h * w)
        found[0, part], found[1, part], found[2, part] = (
            following,
            following + rows,
            following + columns,
        )
        place, following = place + h * w, following + max(h, w)
    return found
