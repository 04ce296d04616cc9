"""Does a candidate beat the champion? Decided by the paired tests that `us-jepa probe` left in results.json.

Both must be in one comparison: scores of two comparisons have other folds, frames or patients, and no paired test.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import find_pair
from sharding.recording import InputError

_METRIC = "macro_f1"
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Duel:
    """Candidate and champion on one set.

    Attributes:
        name: of the set.
        difference, low, high: macro F1 of the candidate minus that of the champion, and its 95 % interval.
        p_holm: of no difference, corrected over the sets.

    """

    name: str
    difference: float
    low: float
    high: float
    p_holm: float

    @property
    def verdict(self) -> int:
        """1 where the candidate wins, -1 where it loses, 0 where the two are not told apart."""
        return 0 if self.p_holm >= _SIGNIFICANT else 1 if self.difference > 0 else -1

    def __str__(self) -> str:
        return (
            f"{self.name}: macro F1 {self.difference:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f}, "
            f"p {self.p_holm:.3f}"
        )


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison, as far as a promotion needs them.

    Attributes:
        folder: of the comparison.
        names: of the encoders, by their identity (sha256 over weights and preprocessing).
        tables: of the first protocol, by set.

    """

    folder: Path
    names: dict[str, str]
    tables: dict[str, dict[str, Any]]

    def duels(self, candidate: str, champion: str) -> list[Duel]:
        """Candidate against champion on each set, both given as identities.

        Raises:
            KeyError: one of them is not in it.

        """
        first, second = self.names[candidate], self.names[champion]
        return [_duel(name, table, first, second) for name, table in self.tables.items()]


def load_comparison(folder: Path) -> Comparison:
    """Read results.json.

    Raises:
        InputError: there is none.

    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"probe {folder}: no results.json in it; give the folder that `us-jepa probe` printed")
    results = json.loads(path.read_text())
    protocol = results["settings"]["protocols"][0]
    return Comparison(
        folder,
        {one["identity"]: one["name"] for one in results["encoders"]},
        {one["name"]: one["tables"][protocol] for one in results["sets"]},
    )


def beats(duels: list[Duel]) -> bool:
    """Whether the candidate wins on a set at least, and loses on none."""
    verdicts = [duel.verdict for duel in duels]
    return 1 in verdicts and -1 not in verdicts


def _duel(name: str, table: dict[str, Any], first: str, second: str) -> Duel:
    pair = find_pair(table, first, second, _METRIC)
    return Duel(name, *(pair[key] for key in ("difference", "low", "high", "p_holm")))
