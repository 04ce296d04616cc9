"""Synthetic recordings as real files: multi-frame DICOM, mp4, and a labelled set of both."""

import csv
from pathlib import Path

import cv2
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from sharding.recording import InputError
from sharding.sources.synthetic import (
    HOSPITAL,
    NUM_TISSUES,
    Geometry,
    SyntheticRecording,
    SyntheticSpec,
    generate,
)
from sharding.sources.synthetic_screen import FRAME_TIME_MS

_SYNTAXES = {"jpeg": uid.JPEGBaseline8Bit, "explicit": uid.ExplicitVRLittleEndian, "rle": uid.RLELossless}
_GEOMETRIES: tuple[Geometry, ...] = ("fan", "curved", "linear")
_CM_PER_PIXEL = 0.05
_FRAME_TIME_TAG = 0x00181063
_TWO_D, _TISSUE, _CENTIMETRE = 1, 1, 3  # codes of DICOM PS3.3 C.8.5.5


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
    dataset = _header(recording, spec)
    dataset.PixelData = recording.frames.tobytes()
    dataset["PixelData"].VR = "OB"
    if transfer_syntax == "jpeg":
        _compress_jpeg(dataset, recording.frames)
    elif transfer_syntax == "rle":
        # One named encoder: which ones are installed must not change the bytes.
        dataset.compress(uid.RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _compress_jpeg(dataset: FileDataset, frames: np.ndarray) -> None:
    fragments = [_jpeg(frame) for frame in frames]
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    if dataset.SamplesPerPixel > 1:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    dataset.LossyImageCompressionRatio = round(frames.size / sum(map(len, fragments)), 2)
    dataset.PixelData = encapsulate(fragments)


def _jpeg(frame: np.ndarray) -> bytes:
    # OpenCV halves the chroma in both directions unless told; YBR_FULL_422 means in one.
    options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422]
    pixels = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)  # noqa: PLR2004 - grey
    data: bytes = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    return data


def _header(recording: SyntheticRecording, spec: SyntheticSpec) -> FileDataset:
    num_frames = len(recording.frames)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = (
        uid.UltrasoundMultiFrameImageStorage if num_frames > 1 else uid.UltrasoundImageStorage
    )
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["instance", repr(spec)])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    _add_identity(dataset, spec)
    _add_image(dataset, recording.frames)
    if num_frames > 1:
        dataset.NumberOfFrames, dataset.FrameTime = num_frames, FRAME_TIME_MS
        dataset.FrameIncrementPointer = _FRAME_TIME_TAG
    if spec.region_tag:
        dataset.SequenceOfUltrasoundRegions = [_region(recording.region)]
    return dataset


def _add_identity(dataset: FileDataset, spec: SyntheticSpec) -> None:
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study", spec.patient_id])
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series", spec.patient_id])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = spec.patient_name, spec.patient_id, "19470203"
    dataset.InstitutionName, dataset.Manufacturer = HOSPITAL, "Synthetic"
    dataset.Modality, dataset.BodyPartExamined = "US", "LIVER"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    # The standard wants these in every image, empty when unknown.
    for keyword in ("PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
        setattr(dataset, keyword, "")


def _add_image(dataset: FileDataset, frames: np.ndarray) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.SamplesPerPixel = 1 if frames.ndim == 3 else 3  # noqa: PLR2004 - (T, H, W) is grey
    dataset.PhotometricInterpretation = "MONOCHROME2" if dataset.SamplesPerPixel == 1 else "RGB"
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.LossyImageCompression = "00"


def _region(mask: np.ndarray) -> Dataset:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = _TWO_D, _TISSUE, 0
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = int(columns[0]), int(columns[-1])
    region.RegionLocationMinY0, region.RegionLocationMaxY1 = int(rows[0]), int(rows[-1])
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = _CENTIMETRE
    region.PhysicalDeltaX = region.PhysicalDeltaY = _CM_PER_PIXEL
    return region


def write_mp4(recording: SyntheticRecording, path: Path, fps: int = 20) -> None:
    """Write frames (T, H, W) or (T, H, W, 3) as an MPEG-4 video.

    Raises:
        InputError: an odd height or width, which the codec would cut.
        OSError: the writer does not open.

    """
    height, width = recording.frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(f"{path}: frames are {height} x {width}; mp4 needs an even height and width")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write mp4 here; the folder must exist and its FFmpeg have mpeg4")
    for frame in recording.frames:
        code = cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR  # noqa: PLR2004 - grey
        writer.write(cv2.cvtColor(frame, code))
    writer.release()


def write_demo_set(folder: Path, num_patients: int, seed: int) -> Path:
    """Write a labelled set, one .dcm and one .mp4 per patient, and return its labels.csv (path, label, group).

    Tissue, the label, is crossed with geometry, file kind and region tag, so none of them gives it away;
    the balance is exact for a multiple of 18 patients.

    Raises:
        InputError: fewer patients than tissues.

    """
    if num_patients < NUM_TISSUES:
        raise InputError(f"num_patients is {num_patients}; it must be at least {NUM_TISSUES}, one per tissue")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(num_patients):
        for number, suffix in enumerate((".dcm", ".mp4")):
            spec = _demo_spec(seed, patient, number)
            path = folder / f"r{patient:04d}_{number}{suffix}"
            _write_file(spec, path)
            rows.append((path.name, f"tissue_{spec.tissue}", spec.patient_id))
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    return labels


def _demo_spec(seed: int, patient: int, number: int) -> SyntheticSpec:
    return SyntheticSpec(
        geometry=_GEOMETRIES[patient // NUM_TISSUES % len(_GEOMETRIES)],
        tissue=patient % NUM_TISSUES,
        seed=seed * 100_003 + patient * 2 + number,
        patient_name=f"Zelmira{patient}^Quorvath",
        patient_id=f"SYN-{seed:02d}-{patient:04d}",
        region_tag=patient % 2 == 0,
    )


def _write_file(spec: SyntheticSpec, path: Path) -> None:
    if path.suffix == ".mp4":
        write_mp4(generate(spec), path)
    else:
        write_dicom(generate(spec), spec, path)
