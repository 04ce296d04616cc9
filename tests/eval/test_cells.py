"""Cells: made once, whole or absent, found by content."""

import json
import math
from pathlib import Path

import pytest

from eval.cells import Cells, canonical, key_hash


def test_a_cell_is_made_once_and_found_again(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, object]:
        made.append(1)
        return {"value": [1.5, math.inf], "name": "a"}

    first = Cells(tmp_path / "cells").get({"kind": "x", "seed": 1}, make)
    again = Cells(tmp_path / "cells").get({"seed": 1, "kind": "x"}, make)
    assert first == again == {"value": [1.5, math.inf], "name": "a"}
    assert len(made) == 1


def test_a_cell_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path).get({"kind": "x"}, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_cell_says_what_it_is_of(tmp_path: Path) -> None:
    Cells(tmp_path).get({"kind": "x"}, lambda: {"a": 1})
    content = json.loads((tmp_path / f"{key_hash({'kind': 'x'})}.json").read_text())
    assert content == {"key": {"kind": "x"}, "value": {"a": 1}}


def test_equal_values_give_equal_bytes() -> None:
    assert canonical({"b": 0.1, "a": (1, 2)}) == canonical({"a": [1, 2], "b": 0.1})
