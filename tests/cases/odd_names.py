"""Sources whose names are no UTF-8, as file servers and old Windows or DOS archives leave them.

Public reports: devsnd/tarindexer #9 (surrogates not allowed), pydicom #137, Slicer #3999 and bastula/dicompyler #83
(names with other letters), vtk-dicom #212, webdataset #330.
"""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from tests.cases.scans import cine, save_native

LATIN = os.fsdecode(b"M\xfcller")  # in Latin-1, as Python keeps it


def dicom() -> bytes:
    """A cine as DICOM."""
    with TemporaryDirectory() as folder:
        save_native(Path(folder) / "scan.dcm", cine(9, 120, 160), patient="p")
        return (Path(folder) / "scan.dcm").read_bytes()


def still(seed: int = 0) -> bytes:
    """A still as PNG."""
    return cv2.imencode(".png", cine(1, 120, 160, seed=seed)[0])[1].tobytes()


def video() -> bytes:
    """A cine as mp4."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20, (160, 120))
        for frame in cine(9, 120, 160):
            writer.write(np.repeat(frame[..., None], 3, axis=2))
        writer.release()
        return path.read_bytes()


def tar(content: bytes, layout: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar with the same member under an odd and a plain name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name in (f"{LATIN}.dcm", "plain.dcm"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(content: bytes) -> bytes:
    """A zip whose member's name has a byte that is no UTF-8, without the flag for UTF-8."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("M?ller.dcm", content)
    return buffer.getvalue().replace(b"M?ller.dcm", b"M\xfcller.dcm")


def write_sources(folder: Path) -> dict[str, int]:
    """One folder with each kind of source under an odd name; returns the outcomes that public pixels should have."""
    scan = dicom()
    other = scan.replace(b"1.2.826", b"1.2.827")  # another instance; the pixels make it a duplicate
    files = {
        f"{LATIN}.dcm": scan,
        f"{LATIN}.png": still(1),
        f"{LATIN}.mp4": video(),
        f"{LATIN}.txt": b"no scan at all",
        f"{LATIN}/still.png": still(2),
        f"{LATIN}/{LATIN}.tif": cv2.imencode(".tif", cine(1, 96, 128, seed=3)[0])[1].tobytes(),
        "scans.tar": tar(other),
        "scans.zip": zipped(other),
        "Müller.png": still(4),
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return {"accepted": 6, "duplicate": 3, "not_readable_kind": 1}
