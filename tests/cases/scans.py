"""Small ultrasound-like material for the cases beside this file: a moving fan of speckle, and DICOM around it."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

_CINE, _STILL = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.6.1"


def cine(num: int = 12, rows: int = 240, columns: int = 320, seed: int = 0) -> np.ndarray:
    """(num, rows, columns) uint8: a fan of moving speckle on black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    top = rows * 0.08
    radius = np.hypot(y - top, x - columns / 2)
    angle = np.abs(np.arctan2(x - columns / 2, y - top + 1e-6))
    fan = (radius > rows * 0.12) & (radius < rows * 0.85) & (angle < 0.7)
    base = rng.rayleigh(60, (rows + num * 2, columns))
    frames = []
    for number in range(num):
        speckle = np.roll(base, number * 3, axis=0)[:rows] * (0.6 + 0.4 * np.cos(number / 2 + y / 20))
        frames.append(np.where(fan, np.clip(speckle + 25, 16, 255), 0).astype(np.uint8))
    return np.stack(frames)


def us_dataset(
    frames: np.ndarray,
    patient: str = "P1",
    photometric: str = "MONOCHROME2",
    region: bool = True,
    syntax: UID = ExplicitVRLittleEndian,
) -> Dataset:
    """Ultrasound data set without pixels, for frames (T, H, W[, 3]) uint8."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _CINE if len(frames) > 1 else _STILL
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.PatientID, ds.PatientName, ds.Manufacturer = "US", patient, "Test^Person", "GE"
    ds.Rows, ds.Columns = frames.shape[1:3]
    ds.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    ds.PhotometricInterpretation = photometric
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
        ds.FrameTime = "33.3"
    if region:
        ds.SequenceOfUltrasoundRegions = [_region(ds.Rows, ds.Columns)]
    return ds


def _region(rows: int, columns: int) -> Dataset:
    one = Dataset()
    one.RegionSpatialFormat, one.RegionDataType, one.RegionFlags = 1, 1, 0
    one.RegionLocationMinX0, one.RegionLocationMinY0 = 10, 10
    one.RegionLocationMaxX1, one.RegionLocationMaxY1 = columns - 11, rows - 11
    one.PhysicalUnitsXDirection = one.PhysicalUnitsYDirection = 3
    one.PhysicalDeltaX = one.PhysicalDeltaY = 0.05
    return one


def save_native(
    path: Path, frames: np.ndarray, patient: str = "P1", photometric: str = "MONOCHROME2", region: bool = True
) -> None:
    """Write frames (T, H, W[, 3]) uint8 as an uncompressed DICOM."""
    ds = us_dataset(frames, patient, photometric, region)
    ds.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
    ds.save_as(path, enforce_file_format=True)
