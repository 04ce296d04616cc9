"""What is left of planted letters, and what it costs: the figures of the pixel policy.

    python -m pipeline.bench.phi [--recordings 240] [--cines 300] [--real ../shared/data] [--folder build/phi]

Generated recordings are drawn into screens with banner, clock, text blocks, ECG, toolbar and labels over the sector,
whose pixels are known; written as JPEG DICOM with and without region tag, or as mp4; read and cut like any source.
Then cines in which a name is shown for 1 to 4 frames; see phi_frames.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from pipeline.bench import phi_frames
from pipeline.bench.screens import Screen, draw
from sharding.preprocess import cut_clips
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.region import find_regions
from sharding.report import grid_png
from sharding.sources import read
from sharding.sources.synthetic_files import write_dicom, write_mp4

_MIN_KEPT, _MAX_REFUSED = 0.95, 0.10
_CHOICE = FrameChoice(16)
_TILE = (320, 240)


@dataclass(frozen=True)
class Finding:
    """One recording.

    Attributes:
        kind: what was drawn.
        has_label: letters lie over the sector.
        refusal: None when accepted.
        kept: share of the sector's pixels in the region.
        outside: drawn pixels of the surroundings in the region.
        letters: pixels of letters over the sector that are still seen in accepted frames.

    """

    kind: str
    has_label: bool
    refusal: Reason | None
    kept: float = 0.0
    outside: int = 0
    letters: int = 0


def main() -> None:
    """Print the figures; exit code 1 when one is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recordings", type=int, default=240)
    parser.add_argument("--cines", type=int, default=300, help="with a name in a few frames")
    parser.add_argument("--real", type=Path, default=Path("../shared/data"), help="real cines, see real_clips")
    parser.add_argument("--folder", type=Path, default=Path("build/phi"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    findings, tiles = [], []
    for number in track(range(args.recordings), description="draw, write, read, cut"):
        screen = draw(number)
        finding, tile = examine(screen, args.folder / f"x{'.mp4' if number % 5 == 4 else '.dcm'}")  # noqa: PLR2004
        findings.append(finding)
        tiles.append(tile)
    if tiles:
        (args.folder / "regions.png").write_bytes(grid_png(tiles[:96], 8))
        print(f"pictures: {args.folder / 'regions.png'}")
    is_well = not findings or report(findings)
    raise SystemExit(not (phi_frames.check(args.cines, args.real) & is_well))


def examine(screen: Screen, path: Path) -> tuple[Finding, np.ndarray]:
    """Write a screen to a file, read it back, cut it; returns what was found and a picture of it."""
    if path.suffix == ".mp4":
        write_mp4(screen.recording, path)
    else:
        write_dicom(screen.recording, screen.spec, path)
    recording = read(path, "x", _CHOICE)
    has_label = bool(screen.inside.any())
    try:
        cut_clips(recording, _CHOICE)
        mask = np.any([region.mask for region in find_regions(recording, "certified")], axis=0)
    except Rejected as refusal:
        return Finding(screen.kind, has_label, refusal.reason), _picture(recording, None, str(refusal.reason))
    sector = screen.recording.region
    return Finding(
        screen.kind,
        has_label,
        None,
        kept=float((mask & sector).sum() / sector.sum()),
        outside=int((screen.outside.any(axis=0) & mask).sum()),
        letters=_letters_left(screen, recording, mask),
    ), _picture(recording, mask, screen.kind)


def _letters_left(screen: Screen, recording: Recording, mask: np.ndarray) -> int:
    """Letters over the sector that neither lie outside the kept region nor were painted over: white ones."""
    assert recording.colour is not None
    white = screen.inside[recording.frame_ids] & mask & (recording.colour <= 40)  # noqa: PLR2004 - as marks.py
    near_colour = np.stack([cv2.dilate((plane > 40).astype(np.uint8), np.ones((7, 7))) for plane in recording.colour])  # noqa: PLR2004
    return int((white & (near_colour == 0)).any(axis=0).sum())


def _picture(recording: Recording, mask: np.ndarray | None, text: str) -> np.ndarray:
    picture = cv2.cvtColor(recording.frames[0], cv2.COLOR_GRAY2BGR)
    if mask is not None:
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, (0, 255, 0), 2)
    tile = cv2.resize(picture, _TILE)
    cv2.putText(tile, text, (3, _TILE[1] - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 0), 1)
    return np.asarray(tile)


def report(findings: list[Finding]) -> bool:
    """Print the table; true when every figure is within its limit."""
    accepted = [finding for finding in findings if finding.refusal is None]
    plain = [finding for finding in findings if not finding.has_label]
    refused = Counter(str(finding.refusal) for finding in plain if finding.refusal)
    labelled = Counter(str(finding.refusal) for finding in findings if finding.has_label)
    outside = sum(finding.outside for finding in accepted)
    letters = [finding for finding in accepted if finding.letters]
    kept = float(np.median([finding.kept for finding in accepted] or [0.0]))
    share = sum(refused.values()) / max(1, len(plain))
    print(
        f"{len(findings)} recordings, {len(accepted)} accepted, {len(findings) - len(plain)} with letters in the sector"
    )
    print(f"  drawn pixels outside the sector that are kept:      {outside} (limit 0)")
    print(
        f"  accepted recordings with letters left in the sector: {len(letters)} (limit 0) {[f.kind for f in letters]}"
    )
    print(f"  kept share of the sector, median:                   {kept:.1%} (at least {_MIN_KEPT:.0%})")
    print(
        f"  refused without letters in the sector:              {share:.1%} (at most {_MAX_REFUSED:.0%})"
        f" {dict(refused)}"
    )
    print(f"  what became of those with letters:                  {dict(labelled)}")
    return outside == 0 and not letters and kept >= _MIN_KEPT and share <= _MAX_REFUSED


if __name__ == "__main__":
    main()
