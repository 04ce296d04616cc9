"""Which DICOM formats come out right: `python -m pipeline.bench.formats [--write README.md]`.

Each cell transcodes a real and a generated recording to a transfer syntax and a photometric interpretation, once with a
single frame and once with several, reads the file back and compares with what went in. The exit code is 1 when a cell
is wrong. Needs the test dependencies.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.data import get_testdata_file

from pipeline.bench.transcode import (
    COLUMNS,
    NATIVE,
    dataset_of,
    encode_frame,
    encode_video,
    native_bytes,
    store,
    write_file,
)
from sharding.recording import FrameChoice, Reason, Rejected
from sharding.sources import read
from sharding.sources.synthetic import SyntheticSpec, generate

_SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dicom" / "RGB_CINE_trim3_rle.dcm"
_BEGIN, _END = "<!-- formats -->", "<!-- /formats -->"
_MIN_DB, _MAX_COLOUR_ERROR = 38, 4  # of grey; mean grey levels of the colour plane
_NUM_FRAMES = 3
_JPEG = "1.2.840.10008.1.2.4"

_GREY, _DEEP = ("MONOCHROME2", "MONOCHROME1"), ("12 of 16 bits",)
_PLAIN = (*_GREY, *_DEEP, "PALETTE COLOR", "RGB", "YBR_FULL")
_ROWS: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {  # name: transfer syntaxes, columns, lossless
    "Implicit, Explicit, Big Endian, Deflated": (NATIVE, (*_PLAIN, "RGB planar", "YBR_FULL_422"), True),
    "RLE": (("1.2.840.10008.1.2.5",), _PLAIN, True),
    "Deflated Image Frame": (("1.2.840.10008.1.2.8.1",), (*_PLAIN, "RGB planar"), True),
    "JPEG baseline .50": ((f"{_JPEG}.50",), (*_GREY, "RGB", "YBR_FULL", "YBR_FULL_422"), False),
    "JPEG extended .51": ((f"{_JPEG}.51",), (*_GREY, *_DEEP), False),
    "JPEG lossless .57 .70": ((f"{_JPEG}.57", f"{_JPEG}.70"), _PLAIN, True),
    "JPEG-LS .80": ((f"{_JPEG}.80",), _PLAIN, True),
    "JPEG-LS near-lossless .81": ((f"{_JPEG}.81",), (*_GREY, *_DEEP, "RGB", "YBR_FULL"), False),
    "JPEG 2000 .90 .92": ((f"{_JPEG}.90", f"{_JPEG}.92"), (*_PLAIN, "YBR_RCT"), True),
    "JPEG 2000 lossy .91 .93": ((f"{_JPEG}.91", f"{_JPEG}.93"), (*_GREY, *_DEEP, "RGB", "YBR_ICT"), False),
    "HTJ2K .201 .202": ((f"{_JPEG}.201", f"{_JPEG}.202"), (*_PLAIN, "YBR_RCT"), True),
    "HTJ2K lossy .203": ((f"{_JPEG}.203",), (*_GREY, *_DEEP, "RGB", "YBR_ICT"), False),
    "JPEG XL .110": ((f"{_JPEG}.110",), (*_GREY, *_DEEP, "PALETTE COLOR", "RGB"), True),
    "JPEG XL of a JPEG .111": ((f"{_JPEG}.111",), (*_GREY, "YBR_FULL", "YBR_FULL_422"), False),
    "JPEG XL lossy .112": ((f"{_JPEG}.112",), (*_GREY, *_DEEP, "RGB"), False),
    "MPEG-2 .100 .101": ((f"{_JPEG}.100", f"{_JPEG}.101", f"{_JPEG}.100.1"), ("YBR_PARTIAL_420",), False),
    "H.264 .102-.106": (tuple(f"{_JPEG}.{n}" for n in (102, 103, 104, 105, "106.1")), ("YBR_PARTIAL_420",), False),
    "HEVC .107 .108": ((f"{_JPEG}.107", f"{_JPEG}.108", f"{_JPEG}.107.1"), ("YBR_PARTIAL_420",), False),
}  # fmt: skip
_REFUSED = {
    "JPIP .94 .95 .204 .205": tuple(f"{_JPEG}.{n}" for n in ("94", "95", "204", "205")),
    "SMPTE ST 2110": tuple(f"1.2.840.10008.1.2.7.{n}" for n in (1, 2, 3)),
}
_VIDEOS = {  # last part of the transfer syntax: encoder, container, pixel format
    "100": ("mpeg2video", "mpeg2video", "yuv420p"),
    "101": ("mpeg2video", "mpegts", "yuv420p"),
    "102": ("libx264", "h264", "yuv420p"),
    "103": ("libx264", "mp4", "yuv420p"),
    "104": ("libx264", "mpegts", "yuv420p"),
    "105": ("libx264", "h264", "yuv420p"),
    "106": ("libx264", "mp4", "yuv420p"),
    "107": ("libx265", "hevc", "yuv420p"),
    "108": ("libx265", "mp4", "yuv420p10le"),
}


@dataclass(frozen=True)
class Cell:
    """What one combination gave: worst PSNR in dB (infinite: every sample equal) or a reason."""

    db: float = float("inf")
    reason: str = ""

    def __str__(self) -> str:
        return self.reason or ("exact" if self.db == float("inf") else f"{self.db:.0f} dB")


def main() -> None:
    """Print the table, write it where asked, and exit with 1 when a cell is wrong."""
    parser = argparse.ArgumentParser(description="which DICOM formats come out right")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace what stands between {_BEGIN} and {_END}")
    target = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        table, num_wrong = build_table(recordings(), Path(folder) / "cell.dcm")
    print(table)
    if target is not None:
        _replace(target, table)
    if num_wrong:
        sys.exit(f"{num_wrong} cells are wrong")


def recordings() -> list[np.ndarray]:
    """A real and a generated cine, (T, H, W, 3) uint8 each."""
    real = pydicom.dcmread(_SHARED if _SHARED.is_file() else str(get_testdata_file("examples_ybr_color.dcm")))
    spec = SyntheticSpec("fan", 0, num_frames=_NUM_FRAMES, colour=True)
    pixels = real.pixel_array[:_NUM_FRAMES]
    rows, columns = (min(side, limit) for side, limit in zip(pixels.shape[1:3], (480, 640), strict=True))
    return [np.ascontiguousarray(pixels[:, :rows, :columns]), generate(spec).frames]


def build_table(sources: list[np.ndarray], path: Path) -> tuple[str, int]:
    """Markdown table of all formats and the number of wrong cells.

    Args:
        sources: recordings (T, H, W, 3).
        path: of the file that each cell overwrites.

    """
    lines = [f"| transfer syntax | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    num_wrong = 0
    for name, (syntaxes, columns, is_lossless) in _ROWS.items():
        cells = []
        for column in COLUMNS:
            pair = [_worst(sources, path, syntaxes, column, num) for num in (1, _NUM_FRAMES) if column in columns]
            num_wrong += sum(not _is_right(cell, is_lossless) for cell in pair)
            cells.append("/".join(map(str, pair)) or "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, syntaxes in _REFUSED.items():
        cells = [str(_worst(sources, path, syntaxes, column, 1)) if column in _PLAIN else "-" for column in COLUMNS]
        num_wrong += sum(cell not in {"-", Reason.UNSUPPORTED_CODEC} for cell in cells)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines), num_wrong


def _is_right(cell: Cell, is_lossless: bool) -> bool:
    return not cell.reason and (cell.db == float("inf") if is_lossless else cell.db > _MIN_DB)


def _worst(sources: list[np.ndarray], path: Path, syntaxes: tuple[str, ...], column: str, num_frames: int) -> Cell:
    cells = [_try(rgb[:num_frames], path, syntax, column) for rgb in sources for syntax in syntaxes]
    return min(cells, key=lambda cell: (not cell.reason, cell.db))


def _try(rgb: np.ndarray, path: Path, syntax: str, column: str) -> Cell:
    stored = store(rgb, column)
    write_file(path, syntax, dataset_of(stored), _pixel_data(rgb, syntax, column))
    try:
        recording = read(path, "cell", FrameChoice())
    except Rejected as refusal:
        return Cell(reason=refusal.reason)
    if recording.frames.shape != stored.frames.shape or (recording.colour is None) != (stored.colour is None):
        return Cell(reason="wrong shape")
    if recording.colour is not None and stored.colour is not None:
        error = cv2.absdiff(recording.colour, stored.colour)
        is_exact = np.array_equal(recording.frames, stored.frames)
        if error.mean() > _MAX_COLOUR_ERROR or (is_exact and error.any()):
            return Cell(reason="wrong colour")
    return Cell(db=_psnr(recording.frames, stored.frames))


def _pixel_data(rgb: np.ndarray, syntax: str, column: str) -> list[bytes] | bytes:
    stored = store(rgb, column)
    number, _, part = syntax.removeprefix(f"{_JPEG}.").partition(".")
    if syntax in NATIVE:
        return native_bytes(syntax, stored)
    if number in _VIDEOS:
        data = encode_video(rgb, *_VIDEOS[number], rate=25)
        size = len(data) // 3 // 2 * 2 if part else len(data)  # fragmentable
        return [data[start : start + size] for start in range(0, len(data), size)]
    if any(syntax in refused for refused in _REFUSED.values()):
        return [b"\0" * 8]
    return [encode_frame(syntax, stored, frame) for frame in range(len(rgb))]


def _psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.square(found.astype(np.float64) - wanted).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def _replace(target: Path, table: str) -> None:
    text = target.read_text()
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        sys.exit(f"{target}: it must hold {_BEGIN} and, below, {_END}")
    target.write_text(f"{text[: begin + len(_BEGIN)]}\n{table}\n{text[end:]}")


if __name__ == "__main__":
    main()
