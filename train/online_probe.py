"""The online probe: a small linear probe of a labelled set at every validation, which tells early what a run is worth.

It is logged, and that is all. It never chooses a checkpoint: it looks at labels, and an encoder that labels have chosen
scores too well on them, and unfairly beside a teacher that has seen none. eval/probe.py is the probe to report.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional

from sharding.order import slice_of_rank
from sharding.recording import InputError
from train.data import Labelled
from train.health import pooled
from train.step import Looker

_RIDGE = 0.1  # on features of variance 1 whose samples weigh 1 together


class OnlineProbe:
    """The probe of a set: the same samples at every validation, their patients in two fixed halves.

    Raises:
        InputError: no labels, one class, or a class whose patients are all in one half; `place` names the set.

    """

    def __init__(self, labelled: Labelled, place: str) -> None:
        self._dataset, self._positions = labelled.dataset, labelled.positions
        names, classes = np.unique(labelled.labels, return_inverse=True)
        if len(names) <= 1:
            raise InputError(
                f"run.probe {place}: {len(classes)} labelled samples of {len(names)} classes, two classes are needed; "
                "make it with `us-jepa shards SRC OUT --labels labels.csv`, or drop run.probe"
            )
        self._classes, self._halves = torch.from_numpy(classes), torch.tensor(halves_of(labelled))
        halves = self._halves.numpy()
        few = [str(name) for number, name in enumerate(names) if np.ptp(halves[classes == number]) == 0]
        if few:
            raise InputError(f"run.probe {place}: class {few[0]} has too few patients for two halves; add some")

    @torch.no_grad()
    def score(self, engine: Any, look: Looker, micro_batch: int, place: tuple[int, int]) -> dict[str, float]:  # noqa: ANN401
        """Metrics by name, the same on every rank; all of (rank, world) must call it."""
        engine.eval()
        found = []
        for micro in slice_of_rank(self._positions, micro_batch, *place):
            batch = self._dataset.batch(micro)
            images, valid, _ = look(batch, still=True)
            features = pooled(engine(images).float(), valid)
            found.append(torch.cat([batch.positions.to(features)[:, None], features], dim=1))
        engine.train()
        mine = torch.cat(found)
        of_ranks = [torch.empty_like(mine) for _ in range(place[1])]
        distributed.all_gather(of_ranks, mine)
        rows = torch.cat(of_ranks).cpu()
        rows = rows[(rows[:, 0] >= 0) & (rows[:, -1] > 0)]  # neither padding nor without a valid patch
        samples = torch.searchsorted(torch.from_numpy(self._positions), rows[:, 0].long())
        classes = self._classes[samples]
        return {
            "probe/balanced_accuracy": balanced_accuracy(rows[:, 1:-1], classes, self._halves[samples]),
            "probe/chance": 1 / len(set(classes.tolist())),  # of always naming one class, the majority's or another
        }


def halves_of(labelled: Labelled) -> list[int]:
    """0 or 1 for each sample: patients whole, those of a class dealt in turn in the order of their hashes."""
    first: dict[str, str] = {}
    for patient, label in zip(labelled.patients, labelled.labels, strict=True):
        first[patient] = min(label, first.get(patient, label))
    dealt = sorted(first, key=lambda patient: (first[patient], hashlib.sha256(patient.encode()).digest()))
    half = {patient: number % 2 for number, patient in enumerate(dealt)}
    return [half[patient] for patient in labelled.patients]


def balanced_accuracy(features: torch.Tensor, classes: torch.Tensor, halves: torch.Tensor) -> float:
    """Mean recall of the classes, each half predicted by the fit of the other: features (n, F), the rest (n,) int64."""
    features, predicted = features.double(), torch.empty_like(classes)
    for half in (0, 1):
        fitted = halves == half
        predicted[~fitted] = _predict(features[fitted], classes[fitted], features[~fitted])
    wanted = functional.one_hot(classes).double()
    recall = (predicted == classes).double() @ wanted / wanted.sum(dim=0)
    return float(recall[wanted.any(dim=0)].mean())


def _predict(fitted: torch.Tensor, classes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Class of each other sample by one-vs-rest ridge regression in which all classes weigh the same."""
    wanted = functional.one_hot(classes).double()
    weight = functional.normalize((wanted / wanted.sum(dim=0).clamp(min=1)).sum(dim=1, keepdim=True), p=1, dim=0)
    mean = (weight * fitted).sum(dim=0)
    deviation = (weight * (fitted - mean).square()).sum(dim=0).sqrt()
    inputs, others = ((part - mean) / deviation.where(deviation > 0, 1) for part in (fitted, others))
    products = inputs.T @ (weight * inputs) + _RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    slopes: torch.Tensor = torch.linalg.solve(products, inputs.T @ (weight * wanted))
    return (others @ slopes).argmax(dim=1)
