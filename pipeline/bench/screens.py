"""Generated recordings inside drawn screens, with the exact pixels of every letter: what `make phi` measures on."""

import string
from dataclasses import dataclass, replace
from typing import get_args

import cv2
import numpy as np

from sharding.sources.synthetic import Geometry, SyntheticRecording, SyntheticSpec, generate

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL,
)  # fmt: skip
_INKS = ((235, 235, 235), (255, 255, 255), (255, 230, 60), (90, 220, 255), (160, 160, 160))  # RGB
_LABELS = ("RT KIDNEY LONG", "LIVER", "Quorvath Z", "MRN 4417093", "12-03-1947", "4CH", "LVEF 55%", "D1 3.42 cm")
_GEOMETRIES = get_args(Geometry)


@dataclass(frozen=True)
class Screen:
    """One recording with its surroundings.

    Attributes:
        recording: frames (T, H, W, 3) RGB or (T, H, W) with everything drawn, the region of the sector.
        spec: with the final rows and columns.
        outside: (T, H, W) bool, drawn pixels that are not inside the sector.
        inside: (T, H, W) bool, letters drawn over the sector.
        kind: what was drawn, for the table.

    """

    recording: SyntheticRecording
    spec: SyntheticSpec
    outside: np.ndarray
    inside: np.ndarray
    kind: str


def draw(number: int, num_frames: int = 16) -> Screen:
    """Draw screen `number`; equal numbers give equal pixels."""
    rng = np.random.default_rng([7, number])
    rows, columns = ((200, 260), (300, 400), (420, 560))[number // 3 % 3]
    spec = SyntheticSpec(
        geometry=_GEOMETRIES[number % 3],
        tissue=int(rng.integers(3)),
        num_frames=num_frames,
        height=rows,
        width=columns,
        seed=number,
        patient_id=f"SCREEN-{number}",
        banner=False,
        region_tag=bool(number % 2),
    )
    is_dual = number % 8 == 2  # noqa: PLR2004 - shares of the suite
    canvas = _Canvas(_dual(spec) if is_dual else generate(spec), rng, pane=rows // 2 if number % 8 in (3, 6) else 0)
    drawn = ["dual"] if is_dual else []
    drawn += [canvas.draw_pane()] if canvas.pane else []
    drawn += [canvas.draw_banner(), canvas.draw_blocks(int(rng.integers(1, 9)))]
    drawn += [canvas.draw_trace()] if rng.random() < 0.4 else []  # noqa: PLR2004 - shares of the suite
    drawn += [canvas.draw_toolbar()] if rng.random() < 0.3 else []  # noqa: PLR2004
    drawn += [canvas.draw_label(int(rng.integers(2)))] if number % 4 == 0 else []
    shape = canvas.frames.shape[1:3]
    recording = SyntheticRecording(canvas.frames, canvas.region, canvas.outside | canvas.inside)
    spec = replace(spec, height=shape[0], width=shape[1], colour=True)
    return Screen(recording, spec, canvas.outside, canvas.inside, "+".join(drawn))


def _dual(spec: SyntheticSpec) -> SyntheticRecording:
    """Two sectors side by side, as the B+B mode of a scanner shows them."""
    pair = [generate(spec), generate(replace(spec, seed=spec.seed + 1000))]
    joined = {name: np.concatenate([getattr(made, name) for made in pair], axis=-1) for name in ("frames", "region")}
    return replace(pair[0], **joined)


class _Canvas:
    """A larger picture around a recording, and masks of what is drawn on it."""

    def __init__(self, made: SyntheticRecording, rng: np.random.Generator, pane: int) -> None:
        self._rng = rng
        self.pane = pane  # rows under the sector
        top, bottom, left, right = rng.integers((34, 4, 4, 4), (70, 90, 120, 120))
        bottom += pane and pane + 8
        rows, columns = made.region.shape
        bottom += (top + bottom + rows) % 2  # mp4 wants even sides
        right += (left + right + columns) % 2
        edges = ((top, bottom), (left, right))
        grey = np.pad(made.frames, ((0, 0), *edges))
        self.frames = np.repeat(grey[..., None], 3, axis=3)
        self.region = np.pad(made.region, edges)
        self.outside = np.zeros(grey.shape, dtype=bool)
        self.inside = np.zeros(grey.shape, dtype=bool)
        self._top = int(top)
        self._bottom_rows = int(bottom)

    def draw_banner(self) -> str:
        """Name, hospital and a running clock across the top, sometimes on a bar."""
        height, scale = self._top - 8, (self._top - 8) / 50
        font, ink = self._style()
        bar = self._rng.random() < 0.3  # noqa: PLR2004
        for number, (frame, mask) in enumerate(zip(self.frames, self.outside, strict=True)):
            if bar:
                frame[:height] = (40, 40, 90)
                mask[:height] = True
            clock = f"11:{number // 2 + 10:02d}:{number * 7 % 60:02d}.{number * 37 % 100:02d}"
            self._write(frame, mask, f"QUORVATH ZELMIRA 4417093 {clock}", (4, height - 6), font, scale, ink)
        return "banner"

    def draw_blocks(self, count: int) -> str:
        """Text blocks of one to four lines beside the sector."""
        for _ in range(count):
            font, ink = self._style()
            lines = [self._word() for _ in range(int(self._rng.integers(1, 5)))]
            scale = float(self._rng.uniform(0.3, 0.8))
            sizes = [cv2.getTextSize(line, font, scale, 1)[0] for line in lines]
            size = max(width for width, _ in sizes), max(height for _, height in sizes)
            place = self._find_room(size[0] + 4, len(lines) * (size[1] + 6) + size[1] // 2)
            for row, line in enumerate(lines if place else []):
                assert place is not None
                at = (place[0], place[1] + (row + 1) * (size[1] + 5))
                for frame, mask in zip(self.frames, self.outside, strict=True):
                    self._write(frame, mask, line, at, font, scale, ink)
        return f"{count} blocks"

    def draw_pane(self) -> str:
        """M-mode or a spectrum under the sector, that scrolls, or is written over from left to right."""
        rows, columns = self.region.shape
        is_spectrum, is_swept, step = self._rng.random() < 0.5, self._rng.random() < 0.5, int(self._rng.integers(2, 12))  # noqa: PLR2004
        width = columns - 16
        strip = self._strip(is_spectrum, width + step * len(self.frames))
        box = slice(rows - self.pane - 4, rows - 4), slice(8, 8 + width)
        for number, (frame, mask) in enumerate(zip(self.frames, self.outside, strict=True)):
            start = step * number
            shown = strip[:, start : start + width].copy()
            if is_swept:
                shown[:, start:] = strip[:, start:width]
                shown[:, :start] = strip[:, width : width + start]
                shown[:, start : start + 6] = 0
            frame[box] = shown[..., None]
            mask[box] |= shown > 0
        return f"{'swept' if is_swept else 'scrolling'} {'spectrum' if is_spectrum else 'M-mode'}"

    def _strip(self, is_spectrum: bool, length: int) -> np.ndarray:
        """(pane, length) uint8: a second of it every 90 columns."""
        y, beat = np.mgrid[: self.pane, :length][0] / self.pane, np.sin(np.arange(length) * 2 * np.pi / 90)
        speckle = cv2.GaussianBlur(self._rng.gamma(2, 30, y.shape).astype(np.float32), (3, 3), 0)
        if is_spectrum:
            level = (y < 0.8) & (y > 0.75 - 0.5 * np.maximum(beat, 0.1))  # noqa: PLR2004 - baseline and envelope
        else:
            level = 0.3 + 0.7 * np.abs(np.sin(12 * (y + 0.05 * beat)))
        return np.asarray((speckle * level).clip(0, 255).astype(np.uint8))

    def draw_trace(self) -> str:
        """An ECG that runs under the sector."""
        rows, columns = self.region.shape
        base = rows - max(6, self._bottom_rows // 2)
        x = np.arange(columns)
        for number, (frame, mask) in enumerate(zip(self.frames, self.outside, strict=True)):
            beat = (x + 6 * number) % 90
            y = base - np.where(beat < 6, 0.35 * self._bottom_rows * (1 - abs(beat - 3) / 3), 0)  # noqa: PLR2004
            ink = np.zeros((rows, columns), np.uint8)
            cv2.polylines(ink, [np.stack([x, y], axis=1).astype(np.int32)], False, 1, 1)
            drawn = (ink > 0) & ~self.region
            frame[drawn] = (60, 255, 90)
            mask[drawn] = True
        return "trace"

    def draw_toolbar(self) -> str:
        """Icons in a column at the right edge."""
        columns = self.region.shape[1]
        for top in range(self._top + 4, self.region.shape[0] - 24, 26):
            box = (slice(top, top + 18), slice(columns - 22, columns - 4))
            if not self.region[box].any():
                self.frames[:, *box] = self._rng.integers(60, 255, 3)
                self.outside[:, *box] = True
        return "toolbar"

    def draw_label(self, coloured: int) -> str:
        """Letters over the sector, white or yellow."""
        font, scale = _FONTS[int(self._rng.integers(len(_FONTS)))], float(self._rng.uniform(0.45, 1.0))
        text = _LABELS[int(self._rng.integers(len(_LABELS)))]
        (width, height), _ = cv2.getTextSize(text, font, scale, 1)
        rows, columns = np.nonzero(cv2.erode(self.region.astype(np.uint8), np.ones((2 * height + 1, 2 * width + 1))))
        if not len(rows):
            return "no room"
        pick = int(self._rng.integers(len(rows)))
        at = (int(columns[pick]) - width // 2, int(rows[pick]) + height // 2)
        for frame, mask in zip(self.frames, self.inside, strict=True):
            self._write(frame, mask, text, at, font, scale, (255, 230, 60) if coloured else (235, 235, 235))
        return "yellow label" if coloured else "white label"

    def _style(self) -> tuple[int, tuple[int, int, int]]:
        return _FONTS[int(self._rng.integers(len(_FONTS)))], _INKS[int(self._rng.integers(len(_INKS)))]

    def _word(self) -> str:
        letters = list(string.ascii_letters + string.digits + " .:-/")
        return "".join(self._rng.choice(letters, int(self._rng.integers(2, 14))))

    def _find_room(self, width: int, height: int) -> tuple[int, int] | None:
        """Corner of a free box beside the sector; None after fifty tries."""
        rows, columns = self.region.shape
        taken = self.region | self.outside.any(axis=0)
        for _ in range(50):
            left = int(self._rng.integers(0, max(1, columns - width)))
            top = int(self._rng.integers(self._top, max(self._top + 1, rows - height)))
            if not taken[top : top + height + 4, max(0, left - 2) : left + width + 2].any():
                return left, top
        return None

    @staticmethod
    def _write(
        frame: np.ndarray, mask: np.ndarray, text: str, at: tuple[int, int], font: int, scale: float,
        ink: tuple[int, int, int],
    ) -> None:  # fmt: skip
        alpha = np.zeros(mask.shape, np.uint8)
        cv2.putText(alpha, text, at, font, scale, 255, 1, cv2.LINE_AA)
        share = alpha[..., None] / 255
        frame[:] = (frame * (1 - share) + np.array(ink) * share).astype(np.uint8)
        mask |= alpha > 64  # noqa: PLR2004 - a quarter of the ink is seen as a letter
