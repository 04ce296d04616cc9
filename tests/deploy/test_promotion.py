"""Whether a candidate beats a champion, from results.json alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.promotion import beats, load_comparison
from eval.results import SetCells, results_of
from sharding.recording import InputError

NUM_PATIENTS, PER_PATIENT = 60, 2


def results(sets: dict[str, dict[str, float]]) -> dict[str, object]:
    """What `us-jepa probe` writes: probabilities of encoders, right with a share by set and name, really tested."""
    encoders = [{"name": name, "identity": f"id of {name}"} for name in next(iter(sets.values()))]
    return results_of({"protocols": ["fair"]}, encoders, [], [cells(name, shares) for name, shares in sets.items()])


def cells(name: str, shares: dict[str, float]) -> SetCells:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(NUM_PATIENTS), PER_PATIENT)
    labels = rng.integers(2, size=len(groups))
    probes = {}
    for encoder, share in shares.items():
        right = rng.permutation(len(labels)) < share * len(labels)  # exactly so many
        positive = np.where(right == labels.astype(bool), 0.8, 0.2)
        probabilities = np.stack([1 - positive, positive], axis=1).tolist()
        probes[encoder] = {"probabilities": probabilities, "reported": None, **COMMON}
    facts = {"name": name, "labels": labels.tolist(), "groups": [str(group) for group in groups], **FACTS}
    return SetCells(facts, {"fair": probes})


FACTS = {"sha256": "", "classes": ["a", "b"], "splits": None, "num_refused": 0, "remarks": []}
COMMON = {"constant": False, "strengths": [1.0], "num_unconverged": 0}


def write(folder: Path, content: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_both_orders_of_a_pair_say_the_same(tmp_path: Path) -> None:
    comparison = load_comparison(write(tmp_path, results({"one": {"old": 0.6, "new": 0.95}})))
    (duel,), (turned,) = (comparison.duels(f"id of {a}", f"id of {b}") for a, b in (("new", "old"), ("old", "new")))
    assert 0.2 < duel.low < duel.difference < duel.high
    assert (turned.difference, turned.low, turned.high) == (-duel.difference, -duel.high, -duel.low)
    assert (duel.verdict, turned.verdict) == (1, -1)
    assert str(duel).startswith("one: macro F1 +0.")


@pytest.mark.parametrize(("second_set", "wins"), [({"old": 0.7, "new": 0.7}, True), ({"old": 0.97, "new": 0.6}, False)])
def test_a_win_on_one_set_counts_unless_another_is_lost(
    second_set: dict[str, float], wins: bool, tmp_path: Path
) -> None:
    sets = {"one": {"old": 0.6, "new": 0.95}, "two": second_set}
    duels = load_comparison(write(tmp_path, results(sets))).duels("id of new", "id of old")
    assert duels[0].verdict == 1
    assert beats(duels) == wins


def test_what_is_not_told_apart_does_not_beat(tmp_path: Path) -> None:
    comparison = load_comparison(write(tmp_path, results({"one": {"old": 0.8, "new": 0.8}})))
    duels = comparison.duels("id of new", "id of old")
    assert [duel.verdict for duel in duels] == [0]
    assert not beats(duels)
    with pytest.raises(KeyError):
        comparison.duels("id of new", "id of nobody")


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results.json in it; give the folder that `us-jepa probe` printed"):
        load_comparison(tmp_path)
