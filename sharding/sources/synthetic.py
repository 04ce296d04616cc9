"""Synthetic ultrasound recordings: labelled data for the demo, and planted identifiers for the privacy tests.

Speckle is simulated in beam space, (R, A) for R depth samples and A beams, then scan converted to frames (T, H, W).
The tissue classes differ in texture only; gain, attenuation and cyst vary by patient, so brightness tells nothing.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from sharding.recording import InputError
from sharding.sources.synthetic_screen import HALF_WIDTH, draw_screen, sector_rows

Geometry = Literal["fan", "curved", "linear"]

HOSPITAL = "Quorvath General Hospital"  # planted: no output of the project may contain it
NUM_TISSUES = 3
_SPARSE, _LAYERED = 1, 2  # tissues

_PAD = 6  # beam space beyond the sector, so that moving tissue never uncovers a border
_FLOOR = 6  # dimmest grey level inside the sector
_TINT = np.array([255, 214, 120])  # colour screens draw their text in yellow


@dataclass(frozen=True)
class SyntheticSpec:
    """Everything that decides a recording; equal specs give equal pixels.

    Args:
        geometry: fan (point apex), curved (convex array) or linear (rectangle).
        tissue: texture class: 0 dense fine speckle, 1 sparse scatterers, 2 fine layers.
        num_frames: 1 makes a still.
        height: rows, at least 96.
        width: columns, at least 128.
        seed: of this recording.
        patient_name: planted in the banner and in the DICOM header.
        patient_id: planted likewise; recordings of one patient share gain, attenuation and texture strength.
        banner: draw name, hospital, running clock, depth ticks and grey bar.
        region_tag: `write_dicom` declares the sector in SequenceOfUltrasoundRegions.
        colour: RGB frames with a coloured banner, else grey.

    Raises:
        InputError: a value is out of range.

    """

    geometry: Geometry
    tissue: int
    num_frames: int = 12
    height: int = 240
    width: int = 320
    seed: int = 0
    patient_name: str = "Zelmira^Quorvath"
    patient_id: str = "SYN-000000"
    banner: bool = True
    region_tag: bool = True
    colour: bool = False

    def __post_init__(self) -> None:
        if self.geometry not in get_args(Geometry):
            raise InputError(f"geometry is {self.geometry!r}; it must be one of {', '.join(get_args(Geometry))}")
        if self.tissue not in range(NUM_TISSUES):
            raise InputError(f"tissue is {self.tissue}; it must be from 0 to {NUM_TISSUES - 1}")
        for name, least in (("num_frames", 1), ("height", 96), ("width", 128), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class SyntheticRecording:
    """Pixels and what is true of them.

    Attributes:
        frames: (T, H, W) uint8, or (T, H, W, 3) RGB, with banner and scales drawn.
        region: (H, W) bool, the sector.
        glyphs: (T, H, W) bool, exactly the pixels of banner, clock, ticks and grey bar.

    """

    frames: np.ndarray
    region: np.ndarray
    glyphs: np.ndarray


@dataclass(frozen=True)
class _Look:
    """What the recordings of one patient share."""

    gain: float  # grey level of the near field
    levels_per_db: float
    attenuation_db: float  # from the top to the bottom of the sector
    lateral_blur: float  # beams
    density: float  # share of beam-space samples that hold a strong scatterer
    layering: float  # log amplitude of the layers
    cyst_size: float  # half axis, as a share of the depth


@dataclass(frozen=True)
class _Sector:
    """Beam coordinates of the pixels: depth (H, W) is 0..1 and beam (H, W) is -1..1 inside the sector."""

    depth: np.ndarray
    beam: np.ndarray
    region: np.ndarray
    inner: float  # radius of the transducer in depths; infinite radius (linear) is flat
    half: float  # half angle in radians, or half width in depths when flat
    flat: bool


def generate(spec: SyntheticSpec) -> SyntheticRecording:
    """Simulate the recording that the spec describes.

    Returns:
        Frames (T, H, W) or (T, H, W, 3) uint8, sector (H, W) and drawn pixels (T, H, W); black elsewhere.

    """
    rng = np.random.default_rng([spec.seed, zlib.crc32(spec.patient_id.encode())])
    look = _patient_look(spec)
    sector = _sector(spec, rng)
    tissue = np.stack(list(_tissue_frames(spec, look, sector, rng)))
    screen = _screen(spec) if spec.banner else np.zeros_like(tissue)
    glyphs = screen > 0
    frames = np.where(glyphs, screen, tissue)
    if spec.colour:
        frames = np.where(glyphs[..., None], screen[..., None] * _TINT // 255, tissue[..., None])
    return SyntheticRecording(frames.astype(np.uint8), sector.region, glyphs)


def _screen(spec: SyntheticSpec) -> np.ndarray:
    text = f"{spec.patient_name.replace('^', ' ')} {spec.patient_id} {HOSPITAL}"
    return draw_screen((spec.num_frames, spec.height, spec.width), text, spec.seed % 3600)


def _patient_look(spec: SyntheticSpec) -> _Look:
    """Draw from wide ranges: a weak texture under strong gain is ambiguous, as it is in life."""
    sparse, layered = spec.tissue == _SPARSE, spec.tissue == _LAYERED
    rng = np.random.default_rng([zlib.crc32(spec.patient_id.encode()), spec.tissue])
    return _Look(
        gain=rng.uniform(115, 165),
        levels_per_db=rng.uniform(3.4, 4.6),
        attenuation_db=rng.uniform(8, 20),
        lateral_blur=rng.uniform(1.2, 2.0),
        density=math.exp(rng.uniform(math.log(0.02), math.log(0.12))) if sparse else rng.uniform(0.3, 1),
        layering=rng.uniform(0.35, 0.9) if layered else rng.uniform(0, 0.25),
        cyst_size=rng.uniform(0.07, 0.16),
    )


def _sector(spec: SyntheticSpec, rng: np.random.Generator) -> _Sector:
    """Pixel to beam coordinates; the sector stays clear of banner and sides at every size."""
    top, bottom = sector_rows(spec.height)
    rows = float(bottom - top)
    y, x = np.mgrid[: spec.height, : spec.width].astype(np.float32)
    x, y = x - (spec.width - 1) / 2, y - top
    if spec.geometry == "linear":
        half_width = HALF_WIDTH * spec.width * rng.uniform(0.75, 1)
        depth, beam = y / rows, x / half_width
        inner, half = 0.0, half_width / rows
    else:
        curvature = rng.uniform(0.25, 0.4) if spec.geometry == "curved" else 0.0  # inner over outer radius
        widest = math.asin(min(1, HALF_WIDTH * spec.width * (1 - curvature) / rows))
        half = min(widest, math.radians(rng.uniform(32, 42)))
        outer = rows / (1 - curvature * math.cos(half))
        y += curvature * outer * math.cos(half)
        reach = (1 - curvature) * outer
        depth = (np.hypot(x, y) - curvature * outer) / reach
        beam, inner = np.arctan2(x, y) / half, curvature * outer / reach
    region = (depth >= 0) & (depth <= 1) & (np.abs(beam) <= 1)
    return _Sector(depth, beam, region, inner, half, spec.geometry == "linear")


def _tissue_frames(spec: SyntheticSpec, look: _Look, sector: _Sector, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield grey (H, W) uint8 frames of a moving sector, black outside it."""
    shape = (round(0.86 * spec.height) + 2 * _PAD, spec.width // 2 + 2 * _PAD)
    reflectivity = _reflectivity(look, shape, rng)
    cysts = _cysts(spec, look, sector, shape, rng)
    phase, sway = rng.uniform(0, 2 * np.pi), rng.uniform(1, 3, 2)
    gain = look.gain + rng.normal(0, 6)
    offset = gain - look.levels_per_db * _mean_db(reflectivity, look, rng)
    speckle = _noise(shape, rng)
    for t, cyst in enumerate(cysts):
        speckle = 0.85 * speckle + math.sqrt(1 - 0.85**2) * _noise(shape, rng)
        # Receiver noise is seen where the echo has faded, and keeps the cyst from being black.
        echo = reflectivity * cyst * speckle + 0.055 * _noise(shape, rng)
        grey = offset + look.levels_per_db * _decibel(echo, look)
        shift = sway * np.sin(2 * np.pi * t / 9 + phase + np.array([0, 1]))
        yield _scan_convert(grey, sector, shift)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((*shape, 2), dtype=np.float32)  # the last axis is real and imaginary


def _reflectivity(look: _Look, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Static (R, A, 1) scatterer amplitude: the texture of the tissue."""
    strong = rng.random(shape, dtype=np.float32) < look.density
    amplitude = np.where(strong, 1 / math.sqrt(look.density), 0.3).astype(np.float32)
    layers = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), sigmaX=14, sigmaY=1.6)
    layers = np.asarray(layers) / layers.std()
    reflectivity: np.ndarray = (amplitude * np.exp(look.layering * layers))[..., None]
    return reflectivity


def _decibel(echo: np.ndarray, look: _Look) -> np.ndarray:
    """Blur (R, A, 2) scatterers with the pulse; returns the log envelope (R, A)."""
    blurred = cv2.GaussianBlur(echo, (0, 0), sigmaX=look.lateral_blur, sigmaY=1.1)
    power: np.ndarray = np.square(blurred).sum(axis=-1)
    return 10 * np.log10(power + 1e-9)


def _mean_db(reflectivity: np.ndarray, look: _Look, rng: np.random.Generator) -> float:
    """Measured, not derived: sparse and layered tissue have another mean log envelope than dense tissue."""
    shape: tuple[int, int] = reflectivity.shape[:2]
    return float(_decibel(reflectivity * _noise(shape, rng), look).mean())


def _cysts(
    spec: SyntheticSpec, look: _Look, sector: _Sector, shape: tuple[int, int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield (R, A, 1) amplitudes per frame: depth attenuation times a beating, drifting, hypoechoic ellipse."""
    depth = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    beam = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    x, y = _position(depth, beam, sector)
    x0, y0 = _position(
        np.array(rng.uniform(0.3, 0.7), np.float32), np.array(rng.uniform(-0.5, 0.5), np.float32), sector
    )
    aspect, phase, fall_db = rng.uniform(0.6, 1), rng.uniform(0, 2 * np.pi), rng.uniform(12, 20)
    attenuation = 10 ** (-look.attenuation_db * depth / 20)
    for t in range(spec.num_frames):
        beat = math.sin(2 * np.pi * t / 10 + phase)
        size = look.cyst_size * (1 + 0.2 * beat)
        distance = np.hypot(x - x0 - 0.02 * beat, (y - y0 + 0.015 * beat) / aspect) / size
        inside = 1 / (1 + np.exp(np.clip(25 * (distance - 1), -30, 30)))
        yield (attenuation * 10 ** (-fall_db * inside / 20)).astype(np.float32)[..., None]


def _position(depth: np.ndarray, beam: np.ndarray, sector: _Sector) -> tuple[np.ndarray, np.ndarray]:
    """Place of beam coordinates in the picture, in depths; an ellipse must be one after scan conversion."""
    if sector.flat:
        return beam * sector.half, depth
    radius = depth + sector.inner
    return radius * np.sin(beam * sector.half), radius * np.cos(beam * sector.half)


def _scan_convert(grey: np.ndarray, sector: _Sector, shift: np.ndarray) -> np.ndarray:
    """Beam space (R, A) to picture (H, W) uint8, displaced by (depth, beam) samples."""
    rows, beams = grey.shape
    at_row = sector.depth * (rows - 1 - 2 * _PAD) + _PAD + shift[0]
    at_beam = (sector.beam + 1) / 2 * (beams - 1 - 2 * _PAD) + _PAD + shift[1]
    picture = cv2.remap(
        grey, at_beam.astype(np.float32), at_row.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.where(sector.region, np.clip(picture, _FLOOR, 255), 0).astype(np.uint8)
