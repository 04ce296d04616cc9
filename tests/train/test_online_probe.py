"""The online probe: what it scores, how patients are split, what it refuses, and ZeRO-3 on two ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharding.job import on_processes, run
from sharding.plan import make_plan
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice, InputError
from tests.conftest import KEY
from tests.train.test_pretrain import config, metrics, pretrain
from train.config import PretrainConfig
from train.config_file import load_config
from train.data import Labelled, open_labelled
from train.online_probe import OnlineProbe, balanced_accuracy, halves_of


@pytest.fixture(scope="module")
def labelled_shards(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 12 patients, of 3 classes, with their labels."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(KEY)
    policy = Policy("known", FrameChoice(max_frames=2), val_share=0.2)
    job = Job(str(labelled), str(folder / "shards"), policy, folder / "key", labelled / "labels.csv")
    list(run(job, make_plan(job), on_processes(1)))
    return folder / "shards"


def many(num_patients: int, num_classes: int) -> Labelled:
    """Five samples of each patient."""
    patients = [f"p{number}" for number in range(num_patients) for _ in range(5)]
    labels = [f"c{int(patient[1:]) % num_classes}" for patient in patients]
    dataset: Any = None
    return Labelled(dataset, np.arange(len(patients)), labels, patients)


def parts(found: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.unique(found.labels, return_inverse=True)[1]), torch.tensor(halves_of(found))


def test_no_patient_is_in_both_halves_and_the_order_of_samples_does_not_matter() -> None:
    found = many(41, 3)
    halves = halves_of(found)
    by_patient = dict(zip(found.patients, halves, strict=True))
    assert [by_patient[patient] for patient in found.patients] == halves
    for name in ("c0", "c1", "c2"):
        of_class = [half for patient, half in by_patient.items() if int(patient[1:]) % 3 == int(name[1])]
        assert abs(2 * sum(of_class) - len(of_class)) <= 1
    assert halves_of(Labelled(found.dataset, found.positions, found.labels[::-1], found.patients[::-1])) == halves[::-1]


def test_separable_features_score_one_and_shuffled_labels_chance() -> None:
    found = many(120, 3)
    classes, halves = parts(found)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(classes), 20, generator=generator)
    features = torch.cat([noise, 1e3 * torch.nn.functional.one_hot(classes) + 1e5, torch.ones(len(classes), 1)], dim=1)
    assert balanced_accuracy(features, classes, halves) == 1.0
    patients = torch.randperm(120, generator=generator)  # whole patients, as labels are theirs
    shuffled = classes.view(120, 5)[patients].flatten()
    assert balanced_accuracy(features, shuffled, halves) == pytest.approx(1 / 3, abs=0.12)
    assert balanced_accuracy(torch.zeros_like(features), classes, halves) == pytest.approx(1 / 3)


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    classes, halves = torch.tensor([0] * 90 + [1] * 10), torch.arange(100) % 2
    features = classes[:, None] + 0.1 * torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    assert balanced_accuracy(features, classes, halves) == 1.0
    assert balanced_accuracy(torch.zeros(100, 4), classes, halves) == 0.5


@pytest.mark.parametrize(
    ("labels", "patients", "message"),
    [
        ([], [], "0 labelled samples of 0 classes, two classes are needed; make it with `us-jepa shards SRC OUT --lab"),
        (["a", "a"], ["p", "q"], "2 labelled samples of 1 classes, two"),
        (["a", "a", "b", "b"], ["p", "q", "r", "r"], "class b has too few patients for two halves; add some"),
    ],
)
def test_a_set_that_cannot_be_probed_is_refused(labels: list[str], patients: list[str], message: str) -> None:
    found = Labelled(many(2, 2).dataset, np.arange(len(labels)), labels, patients)
    with pytest.raises(InputError, match=message) as error:
        OnlineProbe(found, "some/set")
    assert str(error.value).startswith("run.probe some/set: ")


def tiny(tmp_path: Path, shards: Path) -> PretrainConfig:
    return load_config(config(tmp_path, shards, "teacher"), [])


def test_samples_of_both_splits_are_found_with_their_labels(labelled_shards: Path, tmp_path: Path) -> None:
    found = open_labelled(tiny(tmp_path, labelled_shards), str(labelled_shards))
    assert len(found.positions) == len(found.labels) == found.dataset.order.num_samples == 48
    assert set(found.labels) == {"tissue_0", "tissue_1", "tissue_2"}
    assert len(set(found.patients)) == 12
    again = open_labelled(tiny(tmp_path, labelled_shards), str(labelled_shards))
    assert (again.labels, again.patients) == (found.labels, found.patients)


def test_shards_without_labels_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 labelled samples"):
        OnlineProbe(open_labelled(tiny(tmp_path, shards), str(shards)), str(shards))


@pytest.mark.slow
@pytest.mark.launch
def test_two_ranks_under_zero_3_log_what_one_rank_logs(shards: Path, labelled_shards: Path, tmp_path: Path) -> None:
    found = {}
    for num_ranks, stage in ((2, 3), (1, 1)):
        (folder := tmp_path / str(num_ranks)).mkdir()
        path = config(
            folder, shards, "teacher", probe=str(labelled_shards), zero_stage=stage, micro_batch=8 // num_ranks
        )
        pretrain(path, num_ranks)
        found[num_ranks] = [metrics(folder / "teacher", f"probe/{name}") for name in ("balanced_accuracy", "chance")]
    assert found[1] == found[2]
    assert found[1][1] == [pytest.approx(1 / 3)] * 3  # at steps 3, 6 and 8
