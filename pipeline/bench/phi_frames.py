"""Names that are shown for 1 to 4 frames of a cine, and letters that are seen where there are none.

A part of `make phi`. A cine is generated, or a real one without letters; a name is drawn over 1 to 4 consecutive
frames of it, in any size, brightness, font and place; it has a region tag, and is cut like any source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.progress import track

from pipeline.bench import text_trial as trial
from pipeline.bench.real_clips import RealClip, real_clips
from pipeline.bench.text_trial import Clip
from sharding.preprocess import Clip as Stored
from sharding.preprocess import cut_clips, cut_region, shows_text
from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.region import Region
from sharding.sample import decode_grey, encode_frame
from sharding.sources.synthetic import NUM_TISSUES, Geometry, SyntheticSpec, generate
from sharding.text import stored_has_text

_MAX_WRONG = 0.03  # of the real cines without letters
_NAMES = ("SMITH JOHN 1947", "Quorvath Z", "MRN 4417093", "12-03-1947", "Nguyen", "IVANOVA, A.", "Dr Garcia", "Anna M")
_SIZES = ((200, 260), (300, 400), (420, 560), (600, 800))
_GEOMETRIES = get_args(Geometry)
_CHOICE = FrameChoice()
_WAYS = {"clear": (0.6, 1.0), "grey": (0.35, 0.6), "faint": (0.2, 0.35)}


@dataclass(frozen=True)
class Shown:
    """One cine with a name in it.

    Attributes:
        kind: `generated` or `real`, and how bright the name is.
        refusal: None when accepted.
        seen: stored frames in which the detector finds letters, given that frame alone, as it is read from a shard.
        num_named: stored frames that hold the name.

    """

    kind: str
    refusal: Reason | None
    seen: int = 0
    num_named: int = 0


def check(number: int, folder: Path) -> bool:
    """Print the table; true when every figure is within its limit."""
    real = [clip for clip in real_clips(folder) if len(clip.frames) > 8] if folder.is_dir() else []  # noqa: PLR2004
    if not real:
        print(f"no real cines in {folder}: generated ones alone")
    shown = [
        _examine(cine, real, np.random.default_rng([11, cine])) for cine in track(range(number), description="names")
    ]
    return _report(shown) & (not real or _report_wrong(real))


def _examine(number: int, real: list[RealClip], rng: np.random.Generator) -> Shown:
    """Draw a name over some frames of a cine, cut it, and look at every stored frame alone."""
    for _ in range(100):
        shown = _try(real if number % 2 else [], rng)
        if shown is not None and shown.refusal in {None, Reason.TEXT_IN_REGION}:
            return shown
    raise RuntimeError(f"cine {number}: none of 100 had room for a name and a sector in its box")


def _try(real: list[RealClip], rng: np.random.Generator) -> Shown | None:
    """None when the name does not fit where it is to stand."""
    clip = _real(real, rng) if real else _generated(rng)
    way = str(rng.choice(list(_WAYS)))
    drawn = trial.plant(clip, str(rng.choice(_NAMES)), rng, _WAYS[way], (7, 40))
    if drawn is None:
        return None
    num_shown = int(rng.integers(1, 5))
    first = int(rng.integers(0, len(clip.frames) - num_shown + 1))
    frames = clip.frames.copy()
    frames[first : first + num_shown] = drawn.frames[first : first + num_shown]
    kind = f"{clip.name or 'generated'}, {way}"
    try:
        stored = _cut(frames, clip.region)
    except Rejected as refusal:
        return Shown(kind, refusal.reason)
    named = (stored.frame_ids >= first) & (stored.frame_ids < first + num_shown)
    return Shown(kind, None, sum(_seen(stored)), int(named.sum()))


def _generated(rng: np.random.Generator) -> Clip:
    rows, columns = _SIZES[int(rng.integers(len(_SIZES)))]
    geometry = _GEOMETRIES[int(rng.integers(3))]
    num_frames = int(rng.integers(9, 65 if rows < 500 else 25))  # noqa: PLR2004 - the largest take a second each
    seed, tissue = int(rng.integers(2**31)), int(rng.integers(NUM_TISSUES))
    made = generate(SyntheticSpec(geometry, tissue, num_frames, rows, columns, seed, banner=False))
    return Clip(made.frames, made.region)


def _real(real: list[RealClip], rng: np.random.Generator) -> Clip:
    clip = real[int(rng.integers(len(real)))]
    num_frames = int(rng.integers(9, len(clip.frames) + 1))
    first = int(rng.integers(0, len(clip.frames) - num_frames + 1))
    return Clip(clip.frames[first : first + num_frames] * clip.region, clip.region, "real")


def _cut(frames: np.ndarray, region: np.ndarray) -> Stored:
    """Cut with the scanner's tag around the sector, as for any recording."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    recording = Recording(frames, np.arange(len(frames)), "dicom", "p", "c", regions=(box,), mm_per_pixel=(None,))
    (clip,) = cut_clips(recording, _CHOICE)
    return clip


def _seen(stored: Stored) -> Iterator[bool]:
    """Whether letters are found in each frame, as `verify` reads it from a shard."""
    for frame in stored.frames:
        data = encode_frame(frame, stored.region)
        yield stored_has_text(decode_grey("x", "jpg", data) * stored.region, stored.region)


def _report(shown: list[Shown]) -> bool:
    accepted = [cine for cine in shown if cine.refusal is None]
    bad = [cine for cine in accepted if cine.seen]
    print(f"{len(shown)} cines of 9 to 64 frames with a name in 1 to 4 frames, {len(accepted)} accepted")
    print(f"  accepted cines with a stored frame in which letters are found:  {len(bad)} (limit 0)")
    for kind in sorted({cine.kind for cine in shown}):
        some = [cine for cine in shown if cine.kind == kind]
        missed = sum(cine.refusal is None and cine.num_named > 0 for cine in some)
        print(f"  {kind:<20} {len(some):>4} cines, {missed} accepted with the name in a stored frame: not found")
    return not bad


def _report_wrong(real: list[RealClip]) -> bool:
    """What is refused of the real cines that hold no letters."""
    names = [clip.name for clip in real if _is_refused(clip)]
    share = len(names) / len(real)
    print(
        f"  real cines without letters that are refused for letters: {len(names)} of {len(real)}, {share:.1%}", end=""
    )
    print(f" (at most {_MAX_WRONG:.0%}) {names}")
    return share <= _MAX_WRONG


def _is_refused(clip: RealClip) -> bool:
    stored = cut_region(clip.frames, np.arange(len(clip.frames)), Region(clip.region, "tag"))
    return shows_text(clip.frames, clip.region, stored)
