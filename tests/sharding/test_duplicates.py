"""Which copies are kept: every content once, unless its instance is there already with other pixels."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sharding.duplicates import find_copies
from sharding.recording import Reason

Copies = list[tuple[int, int, bool]]  # instance, content, lossy
recordings_of = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.booleans()), max_size=20)


def lost_of(recordings: Copies) -> dict[int, Reason]:
    instances, contents, lossy = (np.array([one[i] for one in recordings], dtype=np.uint64) for i in range(3))
    return find_copies(instances, contents, lossy > 0)


@settings(max_examples=300, deadline=None)
@given(recordings=recordings_of)
@example(recordings=[(1, 0, True), (1, 1, False), (2, 0, True)])  # the first is no reason to drop the third
def test_a_recording_gives_way_only_to_one_that_is_kept(recordings: Copies) -> None:
    lost = lost_of(recordings)
    kept = [one for place, one in enumerate(recordings) if place not in lost]
    assert len({instance for instance, _, _ in kept}) == len({content for _, content, _ in kept}) == len(kept)
    for place, reason in lost.items():
        instance, content, lossy = recordings[place]
        if reason == Reason.DUPLICATE:
            assert content in {other for _, other, _ in kept}
        else:
            assert content not in {other for _, other, _ in kept}
            assert (instance, False) in {(other, worse) for other, _, worse in kept} or lossy
            assert instance in {other for other, _, _ in kept}


@settings(max_examples=200, deadline=None)
@given(recordings=recordings_of)
def test_copies_agree_with_a_plain_loop(recordings: Copies) -> None:
    kept: list[int] = []
    for place in sorted(range(len(recordings)), key=lambda row: recordings[row][2]):
        rivals = [recordings[other] for other in kept]
        if not any(recordings[place][0] == rival[0] or recordings[place][1] == rival[1] for rival in rivals):
            kept.append(place)
    assert set(lost_of(recordings)) == set(range(len(recordings))) - set(kept)
