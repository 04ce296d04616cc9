"""The bench of the probes runs at a small size and scales what it ran to the grid."""

import json
from pathlib import Path

import pytest

from pipeline.bench.probe import Data, Measured, fair, loop, main, paper


def test_ways_run_on_the_same_cells_and_read_the_same_classes() -> None:
    data = Data.drawn(600, 12)
    cells = data.cells()
    assert len(cells) == 25
    assert 0.4 < data.labels.mean() < 0.6
    warm = loop(data, cells, solver="newton-cholesky", warm_start=True)
    some = fair(data, cells[:2]), loop(data, cells), warm, paper(data, cells, 2)
    assert [way.share for way in some] == [1, 1 / 25, 1 / 25, 2 / 500]
    assert min(way.macro_f1 for way in some[:3]) > 0.7  # of the paper's fits one is at the strongest decay
    assert abs(some[0].macro_f1 - some[1].macro_f1) < 0.1
    assert some[2].macro_f1 == pytest.approx(some[1].macro_f1, abs=0.02)  # the same minimum
    assert Measured(2.0, 0.25, 0.5).grid == 8


@pytest.mark.slow
def test_the_table_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--samples", "600", "--width", "12", "--fits", "2", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "times faster than scikit-learn" in printed
    assert "times faster than newton-cholesky" in printed
    measured = json.loads((tmp_path / "probe.json").read_text())["measured"]
    assert set(measured) == {"fair", "scikit-learn", "newton-cholesky", "paper"}
