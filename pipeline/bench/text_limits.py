"""Choose and measure the limits of the text detector, sharding/text.json.

    python -m pipeline.bench.text_limits [--real ../shared/data] [--clips 60] [--measure]

A limit lies above the score that few clean clips of each kind reach. Limits are chosen on one part of the generated and
of the real clips, and measured on the other: other seeds, other patients and devices. Minutes on one core.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.bench import text_trial as trial
from pipeline.bench.real_clips import Part, real_clips
from pipeline.bench.text_trial import Clip
from sharding.preprocess import cut_region
from sharding.region import Region
from sharding.sample import decode_grey, encode_frame
from sharding.text import CALIBRATION, Figure, Limits, frame_score, group_score, limits, text_score

_SEEDS: dict[Part, int] = {"chosen on": 1001, "judged on": 2002}
_ALARMS = {"generated": 0.01, "speckle": 0.02, "speckle with marks": 0.05, "real": 0.01}  # share of clean clips
_STEP = 0.005  # added before rounding
_HEADROOM = 0.25  # share of the way from the score that clean clips reach to 1: other clips will reach a little more
_FADING = (0.12, 0.18), (0.18, 0.25), (0.25, 0.4)  # contrasts at which words begin to be found
_CONTRASTS = {
    "clear (60-100 % of the grey range)": (0.6, 1.0),
    "grey (35-60 %)": (0.35, 0.6),
    "faint (20-35 %)": (0.2, 0.35),
}
_HEIGHTS = ((6, 8), (8, 11), (11, 24), (24, 40))  # pixels of a capital letter, as it is stored
_LENGTHS = ((1, 1), (2, 2), (3, 5), (6, 12))  # characters
_USUAL = (9.0, 24.0)  # pixels, where another property is measured
_LETTERS = list("ABCDEFGHIKLMNOPRSTUVWZabdeghknorst0123456789")


@dataclass(frozen=True)
class _Scores:
    clip: float
    frame: float  # or of a group


def main() -> None:
    """Choose, write, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clips", type=int, default=60, help="of each generated kind")
    parser.add_argument("--measure", action="store_true", help="keep the limits")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    chosen = limits() if args.measure else choose(_clean("chosen on", args.clips, args.real))
    figures: list[Figure] = []
    _write(chosen, figures)
    for figure in measure(_clean("judged on", args.clips, args.real)):
        print(f"{figure.what:<60} {figure.found} of {figure.number}", flush=True)
        figures.append(figure)
    _write(chosen, figures)


def _write(chosen: Limits, figures: list[Figure]) -> None:
    content = {"limits": asdict(chosen), "figures": [asdict(figure) for figure in figures]}
    CALIBRATION.write_text(json.dumps(content, indent=1) + "\n")
    limits.cache_clear()


def _clean(part: Part, size: int, folder: Path) -> dict[str, list[Clip]]:
    """Clips without letters by kind."""
    rng = np.random.default_rng((_SEEDS[part], 2))
    return {
        "generated": [trial.generated_clip(rng) for _ in range(size)],
        "speckle": [trial.speckle_clip(rng) for _ in range(size)],
        "speckle with marks": [trial.speckle_clip(rng, marks=True) for _ in range(size)],
        "real": [Clip(real.frames, real.region, real.name) for real in real_clips(folder, part)],
    }


def choose(clean: dict[str, list[Clip]]) -> Limits:
    """Limits above the scores that few clean clips of each kind reach; marks may raise more alarms than tissue."""
    scores = {kind: [_scores(clip) for clip in clips] for kind, clips in clean.items() if clips}
    least = {}
    for look in ("clip", "frame"):
        highest = [
            np.quantile([getattr(score, look) for score in some], 1 - _ALARMS[kind]) for kind, some in scores.items()
        ]
        print(look, dict(zip(scores, np.round(highest, 3).tolist(), strict=True)))
        reached = float(max(highest))
        least[look] = round(reached + _HEADROOM * (1 - reached) + _STEP, 2)
    rise = max(_rises([clip for kind in ("generated", "real") for clip in clean[kind]]))
    print(f"JPEG raises the score of a frame by {rise:.3f} at most")
    return Limits(**least, stored=round(least["frame"] + 1.5 * rise + _STEP, 2))


def _scores(clip: Clip) -> _Scores:
    stored = cut_region(clip.frames, np.arange(len(clip.frames)), Region(clip.region, "tag"))
    alone = [frame_score(frame, stored.region) for frame in stored.frames]
    groups = [group_score(clip.frames, clip.region)] if stored.region.shape != clip.region.shape else []
    return _Scores(text_score(clip.frames, clip.region), max(alone + groups))


def _rises(clips: list[Clip]) -> Iterator[float]:
    """By how much JPEG raises the score of stored frames with faint text, where a little decides."""
    rng = np.random.default_rng(3)
    for clip in clips:
        for contrast in _FADING:
            drawn = trial.with_text(Clip(clip.frames[:1], clip.region), rng, contrast, _USUAL)
            if drawn is not None:
                stored = cut_region(drawn.frames, np.arange(1), Region(clip.region, "tag"))
                frame = stored.frames[0]
                read = decode_grey("x", "jpg", encode_frame(frame, stored.region)) * stored.region
                yield frame_score(read, stored.region, is_stored=True) - frame_score(frame, stored.region)


def measure(clean: dict[str, list[Clip]]) -> Iterator[Figure]:
    """Count what is taken for text, and what is found of text that is shown in one stored frame alone."""
    for kind, clips in clean.items():
        yield _count(f"clips without letters that are refused, {kind}", [_is_refused(_scores(clip)) for clip in clips])
    rng = np.random.default_rng(4)
    stored = [_first_stored(clip) for kind in ("generated", "speckle", "real") for clip in clean[kind]]
    stored = [stored[place] for place in rng.permutation(len(stored))[:120]]
    for name, contrast in _CONTRASTS.items():
        yield _count(f"words of 3 to 12 characters, {name}", _found(stored, rng, contrast=contrast))
    for least, most in _HEIGHTS:
        yield _count(f"clear words, {least} to {most} pixels high", _found(stored, rng, heights=(least, most)))
    for least, most in _LENGTHS:
        name = f"{least} to {most} characters" if most > least else f"{least} character{'s' * (least > 1)}"
        yield _count(f"clear words, {name}", _found(stored, rng, lengths=(least, most)))
    yield _count("clear words, turned by 90 degrees", _found(stored, rng, turned=True))


def _is_refused(scores: _Scores) -> bool:
    limit = limits()
    return scores.clip >= limit.clip or scores.frame >= limit.frame


def _first_stored(clip: Clip) -> Clip:
    stored = cut_region(clip.frames[:1], np.arange(1), Region(clip.region, "tag"))
    return Clip(stored.frames, stored.region)


def _found(
    clips: list[Clip],
    rng: np.random.Generator,
    *,
    contrast: tuple[float, float] = (0.6, 1.0),
    heights: tuple[float, float] = _USUAL,
    lengths: tuple[int, int] = (3, 12),
    turned: bool = False,
) -> list[bool]:
    """Whether each text is found that is drawn into a stored frame, where there is room for it."""
    found = []
    for clip in clips:
        for _ in range(20):
            text = "".join(rng.choice(_LETTERS, rng.integers(lengths[0], lengths[1] + 1)))
            drawn = trial.plant(clip, text, rng, contrast, heights, turned=turned)
            if drawn is not None:
                found.append(frame_score(drawn.frames[0], drawn.region) >= limits().frame)
                break
    return found


def _count(what: str, hits: list[bool]) -> Figure:
    return Figure(what, sum(hits), len(hits))


if __name__ == "__main__":
    main()
