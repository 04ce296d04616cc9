"""Pictures that teach and test the text detector: ultrasound textures, as the detector sees them.

A background is what the detector sees of a clip: (3, H, W) uint8 of middle frame, temporal minimum and maximum. To
draw on it is to draw on every frame of the clip: blending is monotone, so it commutes with minimum and maximum.
"""

from pathlib import Path

import cv2
import numpy as np

from pipeline.bench.text_drawing import chance
from sharding.sources.synthetic import NUM_TISSUES, Geometry, SyntheticSpec, generate
from sharding.text import looks

_GEOMETRIES: tuple[Geometry, ...] = ("fan", "curved", "linear")
_SHADOW = 0.8  # standard deviations
_VIDEO_FRAMES = 64
_SIZES = ((240, 320), (360, 480), (480, 640), (600, 800))


def synthetic_frames(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W) and sector (H, W) of the generator, without banner."""
    height, width = _SIZES[int(rng.integers(len(_SIZES)))]
    geometry = _GEOMETRIES[int(rng.integers(len(_GEOMETRIES)))]
    spec = SyntheticSpec(
        geometry,
        int(rng.integers(NUM_TISSUES)),
        int(rng.choice([1, 8, 12])),
        height,
        width,
        int(rng.integers(2**31)),
        patient_id=f"SYN-{rng.integers(10**6):06d}",
        banner=False,
    )
    made = generate(spec)
    return made.frames, made.region


def speckle_frames(
    rng: np.random.Generator, shape: tuple[int, int], num_frames: int, spans: tuple[float, float] = (25, 60)
) -> np.ndarray:
    """(T, H, W) of log-compressed speckle with layers, specular lines, cysts, shadows, bands and saturation.

    Args:
        rng: source of chance.
        shape: (H, W).
        num_frames: 1 or more; the speckle changes between them.
        spans: dB between black and white, from, to; scanners show 40 to 80, and less is harsher.

    """
    echo = _structure(rng, shape)
    psf = rng.uniform(0.6, 5), rng.uniform(0.5, 2.5)
    still = rng.standard_normal((*shape, 2)).astype(np.float32)
    motion, span = rng.uniform(0.05, 1), rng.uniform(*spans)
    gain = rng.uniform(30, 200)
    frames = np.empty((num_frames, *shape), np.uint8)
    for frame in frames:
        noise = (1 - motion) * still + motion * rng.standard_normal((*shape, 2)).astype(np.float32)
        power = np.square(cv2.GaussianBlur(noise * echo[..., None], (0, 0), sigmaX=psf[0], sigmaY=psf[1])).sum(axis=-1)
        power = power * 4 * np.pi * psf[0] * psf[1] / ((1 - motion) ** 2 + motion**2)
        frame[:] = np.clip(gain + 255 / span * 10 * np.log10(power + 1e-7), 0, 255)
        still = np.roll(still, rng.integers(-1, 2, 2), axis=(0, 1))
    return frames


def _structure(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 amplitudes."""
    rows, columns = shape
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    coarse = rng.standard_normal((rows // 16 + 2, columns // 16 + 2)).astype(np.float32)
    log = rng.uniform(0, 1) * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    if chance(rng, 0.3):  # reverberations or fibres
        angle, period = rng.normal(0, 0.4), rng.uniform(4, 40)
        log += rng.uniform(0.3, 1.2) * np.sin((y * np.cos(angle) + x * np.sin(angle)) * 2 * np.pi / period)
    if chance(rng, 0.3):  # shadows
        log -= 1.5 * (cv2.resize(rng.standard_normal((1, 8)).astype(np.float32), (columns, rows)) > _SHADOW)
    for _ in range(rng.integers(0, 3)):  # cysts
        centre, axes = rng.uniform((0, 0), (rows, columns)), rng.uniform(8, 60, 2)
        inside = np.square((y - centre[0]) / axes[0]) + np.square((x - centre[1]) / axes[1]) < 1
        log[inside] -= rng.uniform(1, 4)
    if chance(rng, 0.3):  # near field
        log += rng.uniform(0.5, 2) * np.exp(-y / rng.uniform(5, 40))
    log -= rng.uniform(0, 1.5) * y / rows
    strong = np.zeros(shape, np.float32)
    for _ in range(int(rng.choice([0, 0, 2, 6, 25, 80]))):  # specular lines, short or long
        start, angle = rng.uniform((0, 0), (columns, rows)), rng.normal(0, 0.5)
        reach = rng.uniform(3, 60) * np.array([np.cos(angle), np.sin(angle)])
        points = np.stack([start, start + reach / 2 + rng.normal(0, 3, 2), start + reach]).astype(np.int32)
        cv2.polylines(strong, [points], False, float(rng.uniform(0.5, 2.5)), int(rng.integers(1, 4)), cv2.LINE_AA)
    return np.asarray(np.exp(log + strong), dtype=np.float32)


def degrade(tiles: np.ndarray, rng: np.random.Generator, least: float = 0.5) -> np.ndarray:
    """What codecs and scalers do to (N, H, W): JPEG, and detail lost by a factor down to `least`."""
    out = tiles
    if chance(rng, 0.3):
        factor = rng.uniform(least, 2)
        out = np.stack([_resampled(tile, factor) for tile in out])
    if chance(rng, 0.5):
        quality = int(rng.integers(60, 96))
        coded = [cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for tile in out]
        out = np.stack([np.asarray(cv2.imdecode(one, cv2.IMREAD_GRAYSCALE)) for one in coded])
    return out


def _resampled(tile: np.ndarray, factor: float) -> np.ndarray:
    small = cv2.resize(
        tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    )
    return np.asarray(cv2.resize(small, tile.shape[::-1], interpolation=cv2.INTER_LINEAR))


def real_frames(path: Path) -> np.ndarray:
    """(T, H, W) of a picture or of 8 frames of a video."""
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))[None]
    video = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while len(frames) < _VIDEO_FRAMES:
        good, frame = video.read()
        if not good:
            break
        frames.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)))
    return np.stack(frames[:: max(1, len(frames) // 8)][:8])


def tiles_of(frames: np.ndarray, region: np.ndarray | None) -> np.ndarray:
    """(3, H, W) of a clip, black outside its region."""
    return looks(frames) if region is None else looks(frames) * region
