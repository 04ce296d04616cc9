"""What is drawn into ultrasound: text, and marks that are no text, in numpy arrays of any number of pictures."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_NO_LETTERS = ("STIXNon", "STIXSiz", "LastResort", "cmex", "cmsy", "cmmi", "Display")
_UNSEEN = ("DejaVuSerif-Bold.", "STIXGeneralItalic.", "cmss10.", "DejaVuSansMono-Oblique.")  # for the evaluation
_HERSHEY = {"seen": (0, 1, 2, 4, 5, 6), "unseen": (3, 7)}  # numbers of cv2.FONT_HERSHEY_*
_WORDS = (
    *(
        "RT",
        "LT",
        "KIDNEY",
        "LONG",
        "TRANS",
        "SAG",
        "LIVER",
        "GALLBLADDER",
        "AORTA",
        "UTERUS",
        "LEFT",
        "RIGHT",
        "OVARY",
    ),
    *(
        "SPLEEN",
        "BLADDER",
        "HEAD",
        "HC",
        "BPD",
        "AC",
        "FL",
        "cm",
        "mm",
        "Dist",
        "Vol",
        "Depth",
        "Hz",
        "MRN",
        "DOB",
        "ID",
    ),
    *(
        "Name",
        "Dr",
        "Hospital",
        "St",
        "Mary",
        "Maria",
        "Anna",
        "Peter",
        "Thomas",
        "Nguyen",
        "Schmidt",
        "Garcia",
        "Smith",
    ),
    *("Johnson", "Ivanov", "Sex", "F", "M", "GA", "EDD", "LMP", "PRE", "POST", "VOID", "cine", "freeze", "AP", "Gain"),
)


@dataclass(frozen=True)
class Written:
    """Text on a clip.

    Attributes:
        coverage: (h, w) float32, 0..1, of the glyphs.
        cap_height: pixels of a capital letter.
        num_characters: without blanks.

    """

    coverage: np.ndarray
    cap_height: float
    num_characters: int


@cache
def fonts(seen: bool) -> tuple[Path | int, ...]:
    """Font files and Hershey numbers, those of the training or those kept for the evaluation."""
    folder = Path(mpl.get_data_path(), "fonts", "ttf")
    letters = [path for path in sorted(folder.glob("*.ttf")) if not path.name.startswith(_NO_LETTERS)]
    letters = [path for path in letters if "Display" not in path.name]
    chosen: list[Path | int] = [path for path in letters if path.name.startswith(_UNSEEN) != seen]
    return (*chosen, *_HERSHEY["seen" if seen else "unseen"] * 2)


def random_text(rng: np.random.Generator) -> str:
    """A name, a label, a date, a clock, a measurement or a jumble of 1 to 30 characters."""
    kinds = _date, _clock, _measurement, _jumble, _number, _label
    return kinds[int(rng.integers(len(kinds)))](rng)


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(rng.choice(list(string.digits), count))


def _date(rng: np.random.Generator) -> str:
    mark = str(rng.choice(list("/.-")))
    return mark.join([_digits(rng, 2), _digits(rng, 2), _digits(rng, int(rng.choice([2, 4])))])


def _clock(rng: np.random.Generator) -> str:
    return ":".join(_digits(rng, 2) for _ in range(rng.integers(2, 4)))


def _measurement(rng: np.random.Generator) -> str:
    name, unit = rng.choice(["", "D1 ", "HC ", "Vol: ", "x "]), rng.choice(["cm", "mm", "ml", "%"])
    return f"{name}{_digits(rng, int(rng.integers(1, 3)))}.{_digits(rng, 2)} {unit}"


def _jumble(rng: np.random.Generator) -> str:
    letters = rng.choice([string.ascii_uppercase, string.ascii_letters, string.ascii_letters + string.digits])
    return "".join(rng.choice(list(letters), rng.integers(1, 12)))


def _number(rng: np.random.Generator) -> str:
    return f"{rng.choice(['', 'MRN', 'ID', 'ID: ', '#'])}{_digits(rng, int(rng.integers(3, 10)))}"


def _label(rng: np.random.Generator) -> str:
    words = " ".join(rng.choice(_WORDS, rng.integers(1, 4)))
    return str(rng.choice([words, words.upper(), words.title(), words.replace(" ", ", ", 1)]))[:30]


def write(text: str, font: Path | int, cap_height: float, rng: np.random.Generator) -> Written:
    """Rasterise a text with a cap height in pixels."""
    if isinstance(font, int):
        coverage = _write_strokes(text, font, cap_height, rng)
    else:
        size = cap_height / 0.72
        face = ImageFont.truetype(str(font), max(round(size), 5))
        left, top, right, bottom = (int(edge) for edge in face.getbbox(text))
        image = Image.new("L", (max(right - left, 1) + 4, max(bottom - top, 1) + 4))
        draw = ImageDraw.Draw(image)
        draw.fontmode = "1" if chance(rng, 0.3) else "L"
        draw.text((2 - left, 2 - top), text, fill=255, font=face)
        coverage = np.asarray(image)
    return Written(coverage.astype(np.float32) / 255, cap_height, len(text.replace(" ", "")))


def _write_strokes(text: str, font: int, cap_height: float, rng: np.random.Generator) -> np.ndarray:
    scale = cap_height / 21
    thickness = int(rng.integers(1, max(2, round(cap_height / 6)) + 1))
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    pad = thickness + 2
    image = np.zeros((height + below + 2 * pad, width + 2 * pad), np.uint8)
    line = (cv2.LINE_AA, cv2.LINE_8)[int(rng.integers(2))]
    return np.asarray(cv2.putText(image, text, (pad, pad + height), font, scale, 255, thickness, line))


def blend(tiles: np.ndarray, coverage: np.ndarray, level: float, opacity: float) -> None:
    """Paint a (h, w) coverage in a grey level over a (N, h, w) view, in place."""
    share = opacity * coverage
    tiles[:] = np.round(tiles * (1 - share) + level * share).astype(np.uint8)


def draw_marks(tiles: np.ndarray, rng: np.random.Generator) -> None:
    """Calipers, dotted lines, rulers, arcs, boxes and arrows: graphics that are no text, into (N, H, W) in place."""
    for _ in range(rng.integers(1, 5)):
        layer = np.zeros(tiles.shape[1:], np.uint8)
        _MARKS[int(rng.integers(len(_MARKS)))](layer, rng)
        blend(tiles, layer / np.float32(255), int(rng.integers(100, 256)), rng.uniform(0.4, 1))


def _point(layer: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(layer.shape[1])), int(rng.integers(layer.shape[0]))


def _width(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 3))


def _calipers(layer: np.ndarray, rng: np.random.Generator) -> None:
    ends, size, kind = (_point(layer, rng), _point(layer, rng)), int(rng.integers(4, 18)), int(rng.integers(3))
    for end in ends:
        cv2.drawMarker(layer, end, 255, kind, size, _width(rng))
    _dots(layer, rng, ends)


def _dots(layer: np.ndarray, rng: np.random.Generator, ends: tuple[tuple[int, int], ...] = ()) -> None:
    start, end = (np.array(end) for end in ends or (_point(layer, rng), _point(layer, rng)))
    radius = _width(rng) - 1
    for share in np.linspace(0, 1, int(rng.integers(4, 40))):
        x, y = start + share * (end - start)
        cv2.circle(layer, (int(x), int(y)), radius, 255, -1)


def _ruler(layer: np.ndarray, rng: np.random.Generator) -> None:
    (left, first), step, size = _point(layer, rng), int(rng.integers(5, 40)), int(rng.integers(2, 9))
    for y in range(first % step, layer.shape[0], step):
        length = size if (y // step) % 5 else 2 * size
        cv2.line(layer, (left, y), (left + length, y), 255, _width(rng))


def _line(layer: np.ndarray, rng: np.random.Generator) -> None:
    cv2.line(layer, _point(layer, rng), _point(layer, rng), 255, _width(rng), cv2.LINE_AA)


def _arc(layer: np.ndarray, rng: np.random.Generator) -> None:
    axes, (first, last) = rng.integers(4, 120, 2).tolist(), rng.uniform(0, 360, 2).tolist()
    cv2.ellipse(layer, _point(layer, rng), axes, 0, first, last, 255, _width(rng), cv2.LINE_AA)


def _box(layer: np.ndarray, rng: np.random.Generator) -> None:
    cv2.rectangle(layer, _point(layer, rng), _point(layer, rng), 255, _width(rng))


def _arrow(layer: np.ndarray, rng: np.random.Generator) -> None:
    cv2.arrowedLine(layer, _point(layer, rng), _point(layer, rng), 255, _width(rng), cv2.LINE_AA)


_MARKS: tuple[Callable[[np.ndarray, np.random.Generator], None], ...] = (
    _calipers,
    _dots,
    _ruler,
    _line,
    _arc,
    _box,
    _arrow,
)


def chance(rng: np.random.Generator, share: float) -> bool:
    """True in that share of the cases."""
    return bool(rng.random() < share)
