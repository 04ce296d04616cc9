"""Files that mean harm: mutations of whole ones, and bombs. For `make fuzz` and the tests."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.errors import InvalidDicomError

from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom, write_mp4

_HUGE, _WIDE = 65_500, 4096  # pixels


def write_seeds(folder: Path) -> list[Path]:
    """Write whole files of every kind: generated ones, pydicom's own test files turned to ultrasound, archives."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, syntax in enumerate(("jpeg", "explicit", "rle")):
        spec = SyntheticSpec("fan", 0, num_frames=8, height=120, width=160, seed=number)
        write_dicom(generate(spec), spec, folder / f"generated-{syntax}.dcm", syntax)
    small = SyntheticSpec("linear", 1, num_frames=8, height=120, width=160)
    write_mp4(generate(small), folder / "clip.mp4")
    frame = generate(small).frames[0]
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        cv2.imwrite(str(folder / f"still{suffix}"), frame)
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        _copy_as_ultrasound(path, folder / f"pydicom-{path.name}")
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "generated-rle.dcm", "a/b.dcm")
        archive.write(folder / "still.png", "c.png")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        tar.add(folder / "clip.mp4", "clip.mp4")
    return sorted(folder.iterdir())


def _copy_as_ultrasound(path: Path, target: Path) -> None:
    """With Modality and SOP class of ultrasound, so that its pixels are reached."""
    try:
        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            return
        dataset.Modality, dataset.SOPClassUID = "US", uid.UltrasoundMultiFrameImageStorage
        dataset.save_as(target)
    except (InvalidDicomError, AttributeError, ValueError, NotImplementedError, KeyError, TypeError):
        target.write_bytes(path.read_bytes())  # broken already: as it is


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut, swap or overwrite lengths, repeat or drop blocks; one to four of these."""
    for _ in range(int(rng.integers(1, 5))):
        if len(data) > 16:  # noqa: PLR2004 - something to change
            data = _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](bytearray(data), rng)
    return data


def _flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(0, len(data), int(rng.integers(1, 32))):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(1, len(data)))])


def _swap(data: bytearray, rng: np.random.Generator) -> bytes:
    """Swap two 4-byte words of the first kilobytes, where lengths stand."""
    first, second = (int(place) * 2 for place in rng.integers(0, min(len(data), 8192) // 2 - 2, 2))
    data[first : first + 4], data[second : second + 4] = data[second : second + 4], data[first : first + 4]
    return bytes(data)


def _claim(data: bytearray, rng: np.random.Generator) -> bytes:
    """Write a huge or negative number where a length may stand."""
    place = int(rng.integers(0, min(len(data), 8192) - 4))
    number = int(rng.choice(np.array([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0, 65535], dtype=np.uint64)))
    data[place : place + 4] = struct.pack("<I", number)
    return bytes(data)


def _repeat(data: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(data)))
    block = data[start : start + int(rng.integers(1, 4096))]
    return bytes(data[:start] + block * int(rng.integers(0, 8)) + data[start:])


_MUTATIONS = (_flip, _cut, _swap, _claim, _repeat)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim or unpack to gigabytes, loop, or name paths outside; as (name, content)."""
    yield "deflate-512MB.dcm", _deflated(b"\0" * (512 << 20))
    yield "jpeg-65500.dcm", _dicom(uid.JPEGBaseline8Bit, encapsulate([_jpeg(_HUGE, _HUGE)]), rows=_HUGE, columns=_HUGE)
    yield "jpeg-65500-in-240.dcm", _dicom(uid.JPEGBaseline8Bit, encapsulate([_jpeg(_HUGE, _HUGE)]))
    yield "jpeg-65500.jpg", _jpeg(_HUGE, _HUGE)
    yield "frames-2e9.dcm", _dicom(uid.ExplicitVRLittleEndian, b"\0" * 240 * 320, num_frames=2**31 - 1)
    yield "claims-10GB.dcm", _dicom(uid.ExplicitVRLittleEndian, b"\0" * 240 * 320, num_frames=131_072)
    rle = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (7 << 20)
    yield "rle-900MB.dcm", _dicom(uid.RLELossless, encapsulate([rle]))
    yield "fragments-2e6.dcm", _dicom(uid.RLELossless, _empty_fragments(2_000_000), num_frames=2)
    yield (
        "nested-20000.dcm",
        _dicom(uid.ExplicitVRLittleEndian, b"\0" * 240 * 320) + b"\x08\0\x15\x11\xff\xff\xff\xff" * 20_000,
    )
    yield "png-30000.png", _png(30_000)
    yield "zip-bomb.zip", _zip({"zeros.dcm": b"\0" * (1 << 30)})
    yield "zip-slip.zip", _zip({"../../etc/cron.d/x": b"x", "/etc/passwd": b"x", "C:\\x.dcm": b"x", "a\\..\\b": b"x"})
    yield "zip-in-zip.zip", _zip({"inner.zip": _zip({"a.txt": b"a"})})
    yield "tar-tricks.tar", _tar_tricks()
    yield (
        "endless.gif",
        b"GIF89a" + struct.pack("<HH", 8, 8) + b"\x80\0\0\0\0\0\xff\xff\xff" + b"\x21\xff" + b"\x01\0" * 4_000_000,
    )


def slow_dicom() -> bytes:
    """A small whole cine whose frames take seconds to decode."""
    frame = cv2.imencode(".jpg", np.full((_WIDE, _WIDE), 90, np.uint8))[1].tobytes()
    return _dicom(uid.JPEGBaseline8Bit, encapsulate([frame] * 16), rows=_WIDE, columns=_WIDE, num_frames=16)


def _dicom(syntax: str, pixels: bytes, rows: int = 240, columns: int = 320, num_frames: int = 1) -> bytes:
    dataset = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
    dataset.Modality, dataset.PatientID, dataset.NumberOfFrames = "US", "bomb", num_frames
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows % 65536, columns % 65536, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _deflated(content: bytes) -> bytes:
    plain = _dicom(uid.ExplicitVRLittleEndian, b"\0" * 240 * 320)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    head = buffer.getvalue()[: buffer.getvalue().rindex(b"1.2.840.10008.1.2.1.99") + 22]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return head + packer.compress(content) + packer.flush()


def _jpeg(rows: int, columns: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16), np.uint8))[1].tobytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", rows, columns)
    return bytes(data)


def _png(side: int) -> bytes:
    data = bytearray(cv2.imencode(".png", np.zeros((16, 16), np.uint8))[1].tobytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _empty_fragments(count: int) -> bytes:
    return b"\xfe\xff\x00\xe0\0\0\0\0" * count


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: ZipInfo would mend it
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _tar_tricks() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("../../etc/x", "/etc/x", "ok.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()
