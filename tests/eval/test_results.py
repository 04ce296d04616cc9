"""Results and tables from hand-made cells: numbers against scikit-learn, Holm, headlines, words for what collapsed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from eval.cells import Json
from eval.metrics import holm
from eval.probe_report import probe_page
from eval.probe_tables import big_rows, collapsed, latex, markdown, pair_rows, probe_tables
from eval.results import MAJORITY, SetCells, find_pair, results_of

MATCH = ("student_1", "its teacher")


def cell(probabilities: np.ndarray, *, reported: list[int] | None = None, constant: bool = False) -> Json:
    return {
        "probabilities": probabilities.tolist(), "reported": reported, "strengths": [1.0], "constant": constant,
        "num_unconverged": 0,
    }  # fmt: skip


def set_cells(name: str, seed: int, gain: float) -> SetCells:
    """60 patients of two frames; the student's probabilities are better than its teacher's by `gain`."""
    random = np.random.default_rng(seed)
    labels = np.repeat(random.permutation(np.repeat([0, 1], 30)), 2)
    noise = random.normal(0, 0.3, (2, 120))

    def probabilities(strength: float, noise: np.ndarray) -> np.ndarray:
        positive = np.clip(0.5 + strength * (labels - 0.5) + noise, 0, 1)
        return np.stack([1 - positive, positive], axis=1)

    facts = {
        "name": name, "sha256": name * 8, "classes": ["no", "BA"], "labels": labels.tolist(),
        "groups": np.repeat(np.arange(60), 2).tolist(), "num_refused": 1, "splits": None,
        "remarks": ["two frames are near duplicates"],
    }  # fmt: skip
    floor = np.tile([0.51, 0.49], (120, 1))
    return SetCells(facts, {"fair": {
        MAJORITY: cell(floor, constant=True),
        "its teacher": cell(probabilities(0.3, noise[0])),
        "student_1": cell(probabilities(0.3 + gain, noise[1])),
        "flat": cell(floor, constant=True),
    }})  # fmt: skip


def results(*gains: float) -> Json:
    sets = [set_cells(f"set{number}", number, gain) for number, gain in enumerate(gains)]
    names = [MAJORITY, "its teacher", "student_1", "flat"]
    encoders = [{"name": name, "identity": name * 4, "note": "", "grid": 4, "width": 8} for name in names[1:]]
    return results_of({"protocols": ["fair"]}, encoders, [MATCH], sets)


def test_scores_and_matrices_are_those_of_scikit_learn() -> None:
    cells = set_cells("one", 0, 0.4)
    [one] = results_of({"protocols": ["fair"]}, [], [MATCH], [cells])["sets"]
    row = next(row for row in one["tables"]["fair"]["rows"] if row["encoder"] == "student_1")
    labels = np.array(cells.facts["labels"])
    predicted = np.array(cells.probes["fair"]["student_1"]["probabilities"]).argmax(axis=1)
    f1 = row["scores"]["macro_f1"]
    assert f1["value"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert f1["low"] < f1["value"] < f1["high"]
    assert row["confusion"] == confusion_matrix(labels, predicted).tolist()


def test_only_reported_samples_count() -> None:
    cells = set_cells("one", 0, 0.4)
    reported = list(range(0, 120, 2))
    for probed in cells.probes["fair"].values():
        probed["reported"] = reported
        probed["probabilities"] = [probed["probabilities"][sample] for sample in reported]
    [one] = results_of({"protocols": ["fair"]}, [], [MATCH], [cells])["sets"]
    assert (one["num_samples"], one["num_reported"], one["num_groups"]) == (120, 60, 60)
    assert np.sum(one["tables"]["fair"]["rows"][0]["confusion"]) == 60


@pytest.mark.parametrize(("gain", "word"), [(0.6, "beats"), (0.0, "is not told apart from"), (-0.6, "loses to")])
def test_the_headline_says_who_wins(gain: float, word: str) -> None:
    [one] = results(gain)["sets"]
    [sentence] = one["tables"]["fair"]["headlines"]
    assert sentence.startswith(f"student_1 {word} its teacher: macro F1 {'+' if gain > 0 else ''}")
    assert "60 patients, 120 frames." in sentence
    assert "Holm" not in sentence  # one set is no family


def test_p_values_of_one_pair_are_corrected_over_the_sets() -> None:
    tables = [one["tables"]["fair"] for one in results(0.6, 0.15, 0.0)["sets"]]
    pairs = [find_pair(table, *MATCH, "macro_f1") for table in tables]
    corrected = holm(np.array([pair["p"] for pair in pairs]))
    assert [pair["p_holm"] for pair in pairs] == pytest.approx(corrected.tolist())
    assert all("after Holm's correction over 3 sets" in table["headlines"][0] for table in tables)
    turned = find_pair(tables[0], *MATCH[::-1], "macro_f1")
    assert (turned["difference"], turned["low"]) == (-pairs[0]["difference"], -pairs[0]["high"])


def test_tables_hold_every_encoder_and_say_what_collapsed() -> None:
    found = results(0.6, 0.0)
    header, *rows = big_rows(found, "fair")
    assert header == ("encoder", "set0", "set1", "mean")
    assert [row[0] for row in rows] == [MAJORITY, "its teacher", "student_1", "flat"]
    assert rows[-1][1].endswith(" *")
    assert not rows[0][1].endswith("*")  # the floor is meant to predict one class
    assert len(collapsed(found, "fair")) == 2
    assert "the fair probe of flat predicts one class for every frame" in markdown(found)
    assert "student\\_1 & " in latex(found)
    assert latex(found).count("\\\\") == 2 * (1 + 4)
    assert [row[0] for row in pair_rows(found["sets"][0]["tables"]["fair"], "student_1")[1:]] == [
        MAJORITY, "its teacher", "flat",
    ]  # fmt: skip
    tables = probe_tables(found)
    assert [(table.name, table.protocol, table.num_refused) for table in tables] == [
        ("set0", "fair", 1),
        ("set1", "fair", 1),
    ]
    assert tables[0].rows[-1][0] == "flat (predicts one class)"


def test_the_page_tells_of_leaks_and_refused_recordings_and_asks_nobody() -> None:
    found = results(0.6)
    page = probe_page(found, {})
    assert page == probe_page(json.loads(json.dumps(found)), {})  # what a continued comparison reads
    for part in ("two frames are near duplicates", "1 recordings could not be read", "student_1 beats its teacher"):
        assert part in page
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_frames_without_groups_are_not_called_patients() -> None:
    cells = set_cells("one", 0, 0.4)
    alone = replace(cells, facts=cells.facts | {"groups": list(range(120))})
    few = {"flat": {"10": {"value": 0.5, "low": 0.4, "high": 0.6, "deviation": 0.1}}}
    found = results_of({"protocols": ["fair"]}, [], [MATCH], [replace(alone, few_shot=few)])
    [sentence] = found["sets"][0]["tables"]["fair"]["headlines"]
    assert sentence.endswith(", 120 frames, each a group of its own.")
    page = probe_page(found, {})
    assert "120 frames; scored: 120 frames, each a group of its own;" in page
    assert "Cross-validated: a frame is scored by probes of other frames." in page
    assert "part of the training frames" in page
    assert "60 patients" not in page
