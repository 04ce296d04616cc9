"""What a scanner draws around the sector: banner, running clock, grey bar, depth ticks.

T frames, H rows, W columns. The layout is shared with the generator, which keeps the sector clear of it.
"""

import math

import cv2
import numpy as np

FRAME_TIME_MS = 50.0
BANNER_SHARE = 0.08  # of the rows
TOP, BOTTOM = 0.11, 0.97  # rows of the sector, as shares of the height
HALF_WIDTH = 0.40  # widest half sector, as a share of the width: leaves the sides to grey bar and ticks
_CLOCK_FROM = 0.74  # of the width: where the name ends and the clock begins


def sector_rows(height: int) -> tuple[int, int]:
    """First and last row of the sector in a picture of that height."""
    return math.ceil(TOP * height), math.floor(BOTTOM * height)


def draw_screen(frames_shape: tuple[int, int, int], text: str, start_s: int) -> np.ndarray:
    """Draw one screen per frame.

    Args:
        frames_shape: (T, H, W).
        text: of the banner; drawn smaller when it is long.
        start_s: what the clock shows in the first frame, in seconds after 11:00.

    Returns:
        (T, H, W) uint8, 0 where nothing is drawn.

    """
    num_frames, height, width = frames_shape
    split = round(_CLOCK_FROM * width)
    static = np.zeros((height, width), np.uint8)
    _write(static, text, 2, split)
    _draw_scales(static)
    screen = np.repeat(static[None], num_frames, axis=0)
    for t, picture in enumerate(screen):
        _write(picture, _clock(start_s * 100 + round(t * FRAME_TIME_MS / 10)), split + 4, width - 2)
    return screen


def _clock(hundredths: int) -> str:
    seconds, hundredths = divmod(hundredths, 100)
    hours, seconds = divmod(seconds, 3600)
    return f"{(11 + hours) % 24:02d}:{seconds // 60:02d}:{seconds % 60:02d}.{hundredths:02d}"


def _write(picture: np.ndarray, text: str, left: int, right: int) -> None:
    """Write into the banner, between two columns."""
    rows = round(BANNER_SHARE * picture.shape[0])
    scale = rows / 55
    width = max(1, cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])
    scale *= min(1, (right - left - 2) / width)
    banner = np.zeros((rows, right - left), np.uint8)
    cv2.putText(banner, text, (0, round(0.72 * rows)), cv2.FONT_HERSHEY_SIMPLEX, scale, 235, 1, cv2.LINE_AA)
    picture[:rows, left:right] = banner


def _draw_scales(picture: np.ndarray) -> None:
    """Grey bar at the left edge, depth ticks at the right edge; both beside the widest sector."""
    height, width = picture.shape
    top, bottom = sector_rows(height)
    bar = np.linspace(255, 20, round(0.4 * height)).astype(np.uint8)
    picture[top : top + len(bar), round(0.02 * width) : round(0.045 * width)] = bar[:, None]
    for i, row in enumerate(np.linspace(top, bottom, 11).round().astype(int)):
        length = 0.035 if i % 5 == 0 else 0.02
        picture[row, width - 2 - round(length * width) : width - 2] = 180
