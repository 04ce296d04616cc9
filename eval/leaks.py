"""What makes a labelled set unfit for an honest number: the same patient or picture on both sides, wrong counts.

A picture is the same when its square is, byte for byte. It is nearly the same when its fine detail is: the frame at
32 x 32 pixels less its surroundings, inside the region, correlates above 0.9 with the other's. On real ultrasound
pictures of other patients stay below 0.82; one that was compressed, rescaled or made noisy comes to 0.95, brightened
until it saturates, to 0.85 (a few are missed). Mirrored, moved by 1 % of the side, or cropped otherwise: not found.
Sides are the splits where a set has some, else the groups, which cross-validation puts on different sides.
Dimensions: n samples.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import cv2
import numpy as np

from eval.datasets import LabelledSet
from eval.partition import SPLITS
from eval.ultrabench import bench_set

_SIDE = 32  # pixels of the thumbnail
_AROUND = 2.0  # sd in thumbnail pixels of what detail is compared with
_SAME = 0.9
_BLOCK = 2048
_FEW_PIXELS = 16  # of the thumbnail inside the region: too few to tell pictures apart
_FLAT = 1.0  # grey levels of detail (root of the mean square) below which pictures cannot be told apart

_Pairs = np.ndarray


@dataclass(frozen=True)
class Leaks:
    """What was found.

    Attributes:
        shared_groups: groups in several splits.
        exact: (m, 2) numbers of samples with the same picture on different sides, the smaller first, ascending.
        near: (m, 2) likewise, of nearly the same picture.
        counts: lines on counts other than expected, and on groups that are no patients.
        splits: (n,) of the set, or None.
        groups: (n,) of the set.
        labels: (n,) of the set.

    """

    shared_groups: tuple[str, ...]
    exact: _Pairs
    near: _Pairs
    counts: tuple[str, ...]
    splits: np.ndarray | None = field(repr=False)
    groups: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def lines(self) -> list[str]:
        """One sentence per finding, none when there is nothing; no name of a patient, no path."""
        found = [*self.counts, *self._groups_line()]
        for pairs, how in ((self.exact, "the same picture as"), (self.near, "nearly the same picture as")):
            found += self._pair_lines(pairs, how)
        num_odd = int((self.labels[self.exact[:, 0]] != self.labels[self.exact[:, 1]]).sum())
        return found + ([f"{num_odd} pairs of the same picture have different labels"] if num_odd else [])

    def _groups_line(self) -> list[str]:
        if self.splits is None or not self.shared_groups:
            return []
        theirs = np.isin(self.groups, self.shared_groups)
        rows = ", ".join(f"{int(theirs[self.splits == split].sum())} of {split}" for split in SPLITS)
        return [f"{len(self.shared_groups)} groups (patients) are in several splits, with samples {rows}"]

    def _pair_lines(self, pairs: _Pairs, how: str) -> list[str]:
        if not len(pairs):
            return []
        if self.splits is None:
            return [f"{len(np.unique(pairs))} of {len(self.labels)} samples have {how} one of another group"]
        return [
            f"{len(rows)} of {int((self.splits == late).sum())} {late} samples have {how} one of {early}"
            for early, late in combinations(SPLITS, 2)
            if len(rows := _rows_of(pairs, self.splits, early, late))
        ]


def find_leaks(dataset: LabelledSet) -> Leaks:
    """Look for shared groups, equal pictures and wrong counts; takes about n^2 / 5e7 seconds on one core."""
    sides = dataset.groups if dataset.splits is None else dataset.splits
    sides = np.unique(sides, return_inverse=True)[1]
    exact = _equal_pairs(dataset.squares, sides)
    near = _near_pairs(_details(dataset.squares), sides)
    known = {tuple(pair) for pair in exact.tolist()}
    near = _as_pairs([pair for pair in near.tolist() if tuple(pair) not in known])
    return Leaks(_shared_groups(dataset), exact, near, _counts(dataset), dataset.splits, dataset.groups, dataset.labels)


def _rows_of(pairs: _Pairs, splits: np.ndarray, early: str, late: str) -> np.ndarray:
    """Numbers of the samples of the later split that have a partner in the earlier one."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return np.unique(both[(splits[both[:, 0]] == early) & (splits[both[:, 1]] == late), 1])


def _shared_groups(dataset: LabelledSet) -> tuple[str, ...]:
    if dataset.splits is None:
        return ()
    splits_of: dict[str, set[str]] = {}
    for group, split in zip(dataset.groups.tolist(), dataset.splits.tolist(), strict=True):
        splits_of.setdefault(str(group), set()).add(split)
    return tuple(sorted(group for group, splits in splits_of.items() if len(splits) > 1))


def _counts(dataset: LabelledSet) -> tuple[str, ...]:
    lines = [f"{dataset.num_refused} recordings could not be read"] if dataset.num_refused else []
    known = bench_set(dataset.name)
    if len(np.unique(dataset.groups)) == len(dataset.groups):
        lines.append("every sample is a group of its own, so intervals are over pictures, not patients")
    if known is None:
        return tuple(lines)
    absent = [name for name in known.classes if name not in dataset.classes]
    lines += [f"no sample of the classes {', '.join(absent)}"] if absent else []
    if dataset.splits is None:
        return (*lines, f"the set has no splits, so its numbers are not those of the paper's {known.name}")
    expected = known.expected("val" in dataset.splits)
    found = {split: int((dataset.splits == split).sum()) for split in expected}
    return (
        *lines,
        *(f"{split} has {found[split]} samples, the paper's {expected[split]}" for split in expected
          if found[split] != expected[split]),
    )  # fmt: skip


def _equal_pairs(squares: np.ndarray, sides: np.ndarray) -> _Pairs:
    rows_of: dict[bytes, list[int]] = {}
    for row, square in enumerate(squares):
        rows_of.setdefault(hashlib.sha256(square[0].tobytes()).digest(), []).append(row)
    pairs = [pair for rows in rows_of.values() for pair in combinations(rows, 2)]
    return _as_pairs([pair for pair in pairs if sides[pair[0]] != sides[pair[1]]])


def _details(squares: np.ndarray) -> np.ndarray:
    """(n, 1024) float32 of length 1: detail of each picture, of mean 0 inside the region; zeros where it has none."""
    return np.stack([_detail(square) for square in squares])


def _detail(square: np.ndarray) -> np.ndarray:
    frame, region = square
    inside = region > 0 if region.any() else np.ones_like(region, dtype=bool)
    weight = _small(inside.astype(np.float32))
    summed = _small(np.where(inside, frame, 0).astype(np.float32))
    around = _blurred(summed) / np.maximum(_blurred(weight), np.finfo(np.float32).tiny)
    used = weight > 0.5  # noqa: PLR2004 - more inside than outside
    detail = np.where(used, summed / np.maximum(weight, 0.5) - around, 0)
    detail = np.where(used, detail - detail[used].mean(), 0) if used.any() else detail
    length = float(np.linalg.norm(detail))
    if used.sum() < _FEW_PIXELS or length < _FLAT * np.sqrt(used.sum()):
        return np.zeros(_SIDE**2, dtype=np.float32)
    return np.asarray((detail / length).ravel(), dtype=np.float32)


def _small(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))


def _blurred(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), _AROUND, borderType=cv2.BORDER_CONSTANT))


def _near_pairs(details: np.ndarray, sides: np.ndarray) -> _Pairs:
    """Pairs on different sides whose details correlate; block by block, the lower half left out."""
    found = []
    for top in range(0, len(details), _BLOCK):
        for left in range(top, len(details), _BLOCK):
            rows, columns = slice(top, top + _BLOCK), slice(left, left + _BLOCK)
            if (sides[rows] == sides[left]).all() and (sides[columns] == sides[left]).all():
                continue
            alike = details[rows] @ details[columns].T > _SAME
            alike &= sides[rows, None] != sides[None, columns]
            pairs = np.argwhere(alike) + np.array([top, left])
            found += pairs[pairs[:, 0] < pairs[:, 1]].tolist()
    return _as_pairs(found)


def _as_pairs(pairs: Iterable[Sequence[int]]) -> _Pairs:
    """(m, 2) int64, in ascending order."""
    return np.array(sorted(map(tuple, pairs)), dtype=np.int64).reshape(-1, 2)
