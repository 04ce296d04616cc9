"""Synthetic recordings as real files: multi-frame DICOM, mp4, and a labelled set of both."""

import csv
from pathlib import Path

import cv2
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from sharding.recording import InputError
from sharding.sources.synthetic import NUM_TISSUES, SyntheticRecording, SyntheticSpec, generate

_SYNTAXES = {"jpeg": uid.JPEGBaseline8Bit, "explicit": uid.ExplicitVRLittleEndian, "rle": uid.RLELossless}
_GEOMETRIES = ("fan", "curved", "linear")
_FRAME_MS = 50.0
_CM_PER_PIXEL = 0.05


def write_dicom(recording: SyntheticRecording, spec: SyntheticSpec, path: Path, transfer_syntax: str = "jpeg") -> None:
    """Write an ultrasound (multi-frame) DICOM file with planted identity; equal inputs give equal bytes.

    Args:
        recording: frames (T, H, W) or (T, H, W, 3) uint8.
        spec: what it was generated from.
        path: file to write.
        transfer_syntax: `jpeg` (baseline), `explicit` (little endian) or `rle`.

    Raises:
        InputError: unknown transfer syntax.

    """
    if transfer_syntax not in _SYNTAXES:
        raise InputError(f"transfer_syntax {transfer_syntax!r}: it must be one of {', '.join(_SYNTAXES)}")
    dataset = _header(recording, spec, _SYNTAXES[transfer_syntax])
    frames = recording.frames
    if transfer_syntax == "jpeg":
        dataset.PhotometricInterpretation = "YBR_FULL_422" if spec.colour else "MONOCHROME2"
        dataset.PixelData = encapsulate([_jpeg(frame) for frame in frames])
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = frames.tobytes()
        dataset["PixelData"].VR = "OB"
    if transfer_syntax == "rle":
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _jpeg(frame: np.ndarray) -> bytes:
    pixels = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)  # noqa: PLR2004 - grey
    data: bytes = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return data


def _header(recording: SyntheticRecording, spec: SyntheticSpec, syntax: uid.UID) -> FileDataset:
    num_frames, height, width = recording.frames.shape[:3]
    multi = num_frames > 1
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage if multi else uid.UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["instance", repr(spec)])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study", spec.patient_id])
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series", spec.patient_id])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = spec.patient_name, spec.patient_id, "19470203"
    dataset.InstitutionName, dataset.Manufacturer = "Quorvath General Hospital", "Synthetic"
    dataset.Modality, dataset.BodyPartExamined = "US", "LIVER"
    dataset.Rows, dataset.Columns = height, width
    dataset.SamplesPerPixel = 3 if spec.colour else 1
    dataset.PhotometricInterpretation = "RGB" if spec.colour else "MONOCHROME2"
    if spec.colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if multi:
        dataset.NumberOfFrames, dataset.FrameTime = num_frames, _FRAME_MS
        dataset.FrameIncrementPointer = 0x00181063
    if spec.region_tag:
        dataset.SequenceOfUltrasoundRegions = [_region(recording.region)]
    return dataset


def _region(mask: np.ndarray) -> Dataset:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = int(columns[0]), int(columns[-1])
    region.RegionLocationMinY0, region.RegionLocationMaxY1 = int(rows[0]), int(rows[-1])
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = _CM_PER_PIXEL
    return region


def write_mp4(recording: SyntheticRecording, path: Path, fps: int = 20) -> None:
    """Write frames as an MPEG-4 video.

    Raises:
        OSError: the writer does not open.

    """
    height, width = recording.frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write mp4 here")
    for frame in recording.frames:
        code = cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR  # noqa: PLR2004 - grey
        writer.write(cv2.cvtColor(frame, code))
    writer.release()


def write_demo_set(folder: Path, num_patients: int, seed: int) -> Path:
    """Write a labelled set, two recordings per patient, and return its labels.csv (path, label, group).

    Tissue, the label, is balanced over geometry and file kind, so neither gives it away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(num_patients):
        tissue, geometry = patient % NUM_TISSUES, _GEOMETRIES[patient // NUM_TISSUES % len(_GEOMETRIES)]
        for number, suffix in enumerate(("dcm", "mp4")):
            spec = SyntheticSpec(
                geometry=geometry,  # type: ignore[arg-type] # of the three
                tissue=tissue,
                seed=seed * 100_003 + patient * 2 + number,
                patient_name=f"Zelmira{patient}^Quorvath",
                patient_id=f"SYN-{seed:02d}-{patient:04d}",
                region_tag=patient % 2 == 0,
            )
            path = folder / f"r{patient:04d}_{number}.{suffix}"
            recording = generate(spec)
            if suffix == "dcm":
                write_dicom(recording, spec, path)
            else:
                write_mp4(recording, path)
            rows.append((path.name, f"tissue_{tissue}", spec.patient_id))
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    return labels
