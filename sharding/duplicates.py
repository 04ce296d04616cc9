"""Which of several copies of a recording is kept.

The same pixels are kept once. The same instance with other pixels (an archive's lossy copy, or an identifier that was
used twice) is kept once too, the lossless one first; the others are conflicts, since their pseudonyms would be equal.
A recording gives way only to one that is kept, so no pixels are lost because two recordings excluded each other.
"""

import numpy as np

from sharding.recording import Reason


def find_copies(clips: np.ndarray, contents: np.ndarray, is_lossy: np.ndarray) -> dict[int, Reason]:
    """Find the recordings that are not kept: those with the pixels or the instance of one that comes before and is.

    Lossless recordings come before lossy ones, and otherwise the order is the one given.

    Args:
        clips: (R,) uint64 keyed hash of each recording's instance.
        contents: (R,) uint64 keyed hash of its stored pixels.
        is_lossy: (R,) bool.

    Returns:
        place -> `duplicate` where the same pixels are kept, else `uid_conflict`.

    """
    left = np.argsort(is_lossy, kind="stable")
    is_kept = np.zeros(len(clips), dtype=bool)
    while len(left):  # a round keeps whoever has no rival before it, and ends the rivals of these; two or three suffice
        chosen = left[_is_first(clips[left]) & _is_first(contents[left])]
        is_kept[chosen] = True
        has_lost = np.isin(clips[left], clips[chosen]) | np.isin(contents[left], contents[chosen])
        left = left[~has_lost]
    is_same = np.isin(contents, contents[is_kept])
    lost = np.flatnonzero(~is_kept).tolist()
    return {place: Reason.DUPLICATE if is_same[place] else Reason.UID_CONFLICT for place in lost}


def _is_first(values: np.ndarray) -> np.ndarray:
    """(R,) bool, true where a value occurs for the first time."""
    is_first = np.zeros(len(values), dtype=bool)
    is_first[np.unique(values, return_index=True)[1]] = True
    return is_first
