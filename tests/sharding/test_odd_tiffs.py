"""TIFF files as other programs write them: the pixels of the page, never its negative, never turned, or a reason."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from sharding.recording import FrameChoice, Reason, Recording, Rejected
from sharding.sources import read
from tests.cases import odd_tiffs
from tests.cases.odd_tiffs import CMYK, LAB, MASK, ORIENTATION, PALETTE, RGB, SAMPLE_FORMAT, WHITE_IS_ZERO, YBR, Page
from tests.cases.scans import cine

GREY = cine(1, 96, 128)[0]
WIDE = GREY.astype(np.uint16) * 257
COLOURED = np.dstack([GREY, 255 - GREY, GREY // 2])
YBR_SAMPLES = cv2.cvtColor(COLOURED, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
CHOICE = FrameChoice()


def read_bytes(data: bytes, folder: Path) -> Recording:
    (folder / "x.tif").write_bytes(data)
    return read(folder / "x.tif", "x", CHOICE)


def fitted(levels: np.ndarray) -> np.ndarray:
    """Levels as more than 8 bits are fitted into 8: the lowest becomes 0, the highest 255."""
    low, high = float(levels.min()), float(levels.max())
    return ((levels - low) * 255 / (high - low)).round().astype(np.uint8)


def is_fitted(found: Recording, levels: np.ndarray) -> bool:
    """Whether the frame is the levels fitted into 8 bits, up to a half that was rounded the other way."""
    return bool(cv2.absdiff(found.frames[0], fitted(levels)).max() <= 1)


def with_bits(num_bits: int, photometric: int) -> Page:
    peak = (1 << num_bits) - 1
    levels = (GREY.astype(np.uint32) * peak + 127) // 255
    stored = peak - levels if photometric == WHITE_IS_ZERO else levels
    return Page(GREY, photometric, num_bits, packed=odd_tiffs.packed(stored, num_bits))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [0, 16, 80])
@pytest.mark.parametrize("is_white_zero", [False, True])
def test_eight_and_sixteen_bits(order: str, tile: int, is_white_zero: bool, tmp_path: Path) -> None:
    for levels, peak in ((GREY, 255), (WIDE, 65535), (WIDE >> 4, 65535)):
        stored = (peak - levels).astype(levels.dtype) if is_white_zero else levels
        page = Page(stored, WHITE_IS_ZERO if is_white_zero else 1, tile=tile)
        found = read_bytes(odd_tiffs.tiff(page, order=order), tmp_path)
        assert (found.frames[0] == GREY).all() if peak == 255 else is_fitted(found, levels)
        assert found.colour is None
        assert not found.is_lossy


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("num_bits", [1, 2, 4, 10, 12, 14])
def test_samples_that_share_bytes(num_bits: int, photometric: int, tmp_path: Path) -> None:
    found = read_bytes(odd_tiffs.tiff(with_bits(num_bits, photometric)), tmp_path)
    levels = (GREY.astype(np.uint32) * ((1 << num_bits) - 1) + 127) // 255
    spread = levels * 255 // ((1 << num_bits) - 1)
    assert (found.frames[0] == spread).all() if num_bits < 8 else is_fitted(found, levels)


@pytest.mark.parametrize("num_bits", [4, 8, 16])
def test_a_palette_is_looked_up(num_bits: int, tmp_path: Path) -> None:
    indices = WIDE if num_bits == 16 else GREY >> (8 - num_bits)
    packed = odd_tiffs.packed(indices, 4) if num_bits == 4 else None
    page = Page(indices, PALETTE, num_bits, tags={320: odd_tiffs.colour_map(num_bits)}, packed=packed)
    found = read_bytes(odd_tiffs.tiff(page), tmp_path)
    ramp = (indices.astype(np.uint32) * 65535 // ((1 << num_bits) - 1) >> 8).astype(np.uint8)
    wanted = np.dstack([ramp, 255 - ramp, np.zeros_like(ramp)])
    np.testing.assert_array_equal(found.frames[0], cv2.cvtColor(wanted, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize(
    "page",
    [
        Page(COLOURED, RGB),
        Page(COLOURED, RGB, is_planar=True),
        Page(COLOURED, RGB, tile=32),
        Page(np.dstack([COLOURED, GREY]), RGB, tags={338: [2]}),
        Page(np.dstack([COLOURED, GREY]), RGB, is_planar=True, tags={338: [2]}),
        Page(np.dstack([255 - COLOURED, np.zeros_like(GREY)]), CMYK),
        Page(np.dstack([255 - COLOURED, np.zeros_like(GREY)]), CMYK, tags={ORIENTATION: [6]}),
        Page(YBR_SAMPLES, YBR, tags={530: [1, 1]}),
        Page(YBR_SAMPLES, YBR, tags={530: [1, 1], ORIENTATION: [2]}),
        odd_tiffs.jpeg_page(COLOURED, YBR),
        odd_tiffs.jpeg_page(COLOURED, YBR, _274=[7]),
        odd_tiffs.jpeg_page(COLOURED, RGB),
    ],
)
def test_colours(page: Page, tmp_path: Path) -> None:
    found = read_bytes(odd_tiffs.tiff(page), tmp_path)
    is_jpeg = 259 in page.tags
    assert found.is_lossy == is_jpeg
    assert found.colour is not None
    off = cv2.absdiff(found.frames[0], cv2.cvtColor(COLOURED, cv2.COLOR_RGB2GRAY))
    assert off.mean() < (1.5 if is_jpeg else 0.2)
    assert cv2.absdiff(found.colour[0], np.ptp(COLOURED, axis=-1)).mean() < (3 if is_jpeg else 0.5)


@pytest.mark.parametrize("is_planar", [False, True])
def test_deep_colours(is_planar: bool, tmp_path: Path) -> None:
    deep = COLOURED.astype(np.uint16) * 257
    found = read_bytes(odd_tiffs.tiff(Page(deep, RGB, is_planar=is_planar)), tmp_path)
    assert cv2.absdiff(found.frames[0], cv2.cvtColor(fitted(deep), cv2.COLOR_RGB2GRAY)).max() <= 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_page_is_never_turned(turn: int, tmp_path: Path) -> None:
    tags = {ORIENTATION: [turn]}
    for order in "<>":
        for page in (Page(GREY, tags=tags), Page(255 - GREY, WHITE_IS_ZERO, tags=tags), Page(GREY, tile=16, tags=tags)):
            found = read_bytes(odd_tiffs.tiff(page, order=order), tmp_path)
            np.testing.assert_array_equal(found.frames[0], GREY)
    lossy = read_bytes(odd_tiffs.tiff(odd_tiffs.jpeg_page(255 - GREY, WHITE_IS_ZERO, _274=[turn])), tmp_path)
    assert cv2.absdiff(lossy.frames[0], GREY).mean() < 1.5


def test_pages_that_differ_in_their_tags(tmp_path: Path) -> None:
    pages = [Page(frame) for frame in cine(6, 96, 128)]
    odd = [Page(255 - page.samples, WHITE_IS_ZERO, tags={ORIENTATION: [place + 1]}) for place, page in enumerate(pages)]
    mixed = [odd[place] if place % 2 else page for place, page in enumerate(pages)]
    mixed[4] = Page(pages[4].samples, tile=32)
    found = read_bytes(odd_tiffs.tiff(*mixed), tmp_path)
    np.testing.assert_array_equal(found.frames, cine(6, 96, 128))
    np.testing.assert_array_equal(found.frame_ids, range(6))


def _reason(data: bytes, folder: Path) -> Reason:
    with pytest.raises(Rejected) as refused:
        read_bytes(data, folder)
    return refused.value.reason


@pytest.mark.parametrize(
    "page",
    [
        Page(GREY.astype(np.int8), tags={SAMPLE_FORMAT: [2]}),
        Page(GREY.astype(np.int16), tags={SAMPLE_FORMAT: [2]}),
        Page(-GREY.astype(np.int16), WHITE_IS_ZERO, tags={SAMPLE_FORMAT: [2]}),
        Page(GREY.astype(np.uint32)),
        Page(GREY.astype(np.float16), tags={SAMPLE_FORMAT: [3]}),
        Page(GREY.astype(np.float32), tags={SAMPLE_FORMAT: [3]}),
        Page(GREY.astype(np.float64), tags={SAMPLE_FORMAT: [3]}),
        Page(GREY, MASK),
        Page(COLOURED, LAB),
        Page(np.dstack([COLOURED, GREY]).astype(np.uint16), CMYK),
        Page(COLOURED, RGB, tags={258: [8, 8, 16]}),
    ],
)
def test_samples_that_are_no_grey_levels_are_named(page: Page, tmp_path: Path) -> None:
    assert _reason(odd_tiffs.tiff(page), tmp_path) == Reason.UNSUPPORTED_CODEC


@pytest.mark.parametrize("head", [b"II+\0\x08\0\0\0\x10\0\0\0", b"MM\0+\0\x08\0\0\0\0\0\0"])
def test_big_tiff_is_named(head: bytes, tmp_path: Path) -> None:
    assert _reason(head + bytes(200), tmp_path) == Reason.UNSUPPORTED_CODEC


def test_broken_tiffs(tmp_path: Path) -> None:
    half = odd_tiffs.jpeg_page(GREY, 1)
    assert half.packed is not None
    cut = Page(GREY, tags=half.tags, packed=half.packed[:-200])
    whole = odd_tiffs.tiff(Page(GREY), Page(WIDE))
    for data, reason in (
        (whole, Reason.UNDECODABLE),  # 8 bits beside 16
        (odd_tiffs.tiff(Page(GREY), Page(COLOURED, RGB)), Reason.UNDECODABLE),
        (odd_tiffs.tiff(Page(GREY), Page(GREY[:-1])), Reason.SIZE_MISMATCH),
        (odd_tiffs.tiff(Page(GREY, PALETTE)), Reason.UNDECODABLE),  # without its map
        (odd_tiffs.tiff(Page(GREY, packed=GREY[:50].tobytes())), Reason.UNDECODABLE),
        (whole[: len(whole) - 100], Reason.UNDECODABLE),
    ):
        assert _reason(data, tmp_path) == reason
    lengths = odd_tiffs.tiff(cut).replace(len(cut.packed or b"").to_bytes(4, "little"), (10**6).to_bytes(4, "little"))
    assert _reason(lengths, tmp_path) == Reason.UNDECODABLE
