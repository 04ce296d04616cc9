"""Which of several copies of a recording is kept.

The same pixels are kept once. The same instance with other pixels (an archive's lossy copy, or an identifier that was
used twice) is kept once too, the lossless one first; the others are conflicts, since their pseudonyms would meet.
"""

import numpy as np

from sharding.recording import Reason


def find_copies(clips: np.ndarray, contents: np.ndarray, is_lossy: np.ndarray) -> dict[int, Reason]:
    """Find the recordings that are not kept. Of equal pixels the first stays; of equal instances the first lossless.

    Args:
        clips: (R,) uint64 keyed hash of each recording's instance.
        contents: (R,) uint64 keyed hash of its stored pixels.
        is_lossy: (R,) bool.

    Returns:
        place -> `duplicate` or `uid_conflict`.

    """
    _, unique = np.unique(contents, return_index=True)  # the index of the first
    is_duplicate = np.ones(len(contents), dtype=bool)
    is_duplicate[unique] = False
    rest = np.flatnonzero(~is_duplicate)
    rest = rest[np.argsort(is_lossy[rest], kind="stable")]
    _, best = np.unique(clips[rest], return_index=True)
    conflicts = np.delete(rest, best)
    return {
        **dict.fromkeys(np.flatnonzero(is_duplicate).tolist(), Reason.DUPLICATE),
        **dict.fromkeys(conflicts.tolist(), Reason.UID_CONFLICT),
    }
