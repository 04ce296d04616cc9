"""An upload decoded as sharding does it, in a killable child, and refused with sharding's reason."""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from deploy.embed import squares_of
from deploy.upload import MemoryFile, Refused, UploadLimits
from sharding.child import DESCRIPTOR
from sharding.convert import Converted, EncodedClip, Task
from sharding.isolate import Converter
from sharding.recording import InputError, Reason, Rejected
from sharding.sample import decode_grey, decode_region, encode_region
from sharding.sources import kind_of

_log = logging.getLogger("us_jepa.serve")
_FAULTS = {Reason.CRASHED, Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.NOT_READABLE_KIND}
_NOWHERE = Path(os.devnull)  # archives, whose members need a folder, are refused before


@dataclass(frozen=True)
class Clip:
    """The frames of one region of an upload.

    Attributes:
        squares: (n, 2, S, S) uint8, as the encoder sees frames and region.
        frame_ids: index of each in the upload.
        times_ms: since its first frame, None where it does not say.
        certificate: what vouches for the region.

    """

    squares: np.ndarray
    frame_ids: tuple[int, ...]
    times_ms: tuple[float, ...] | None
    certificate: str


class Decoders:
    """Killable children, one for each upload that is decoded at the same time.

    Args:
        num_decoders: uploads at the same time.
        limits: of each.
        size: side in pixels of the squares.

    Raises:
        InputError: this system has no memory files, or a decoder does not start within the limits.

    """

    def __init__(self, num_decoders: int, limits: UploadLimits, size: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise InputError("serve: needs memfd_create, which Linux has; it keeps uploads off the disk")
        self._limits, self._size = limits, size
        self._converters: SimpleQueue[Converter] = SimpleQueue()
        for _ in range(num_decoders):
            self._converters.put(Converter(limits.decode, _NOWHERE, []))
        self._pool = ThreadPoolExecutor(num_decoders, "decoder")
        for _ in range(num_decoders):
            self._try()

    def _try(self) -> None:
        """Decode a small picture: the first child takes a second to start, and a limit may be too low for any."""
        with MemoryFile() as file:
            file.write(encode_region(np.ones((8, 8), dtype=bool)))
            converted = self._convert(file)
        if converted.refusal in _FAULTS:
            raise InputError(
                f"serve: decoders fail ({converted.refusal}) within {self._limits.decode}; allow them more"
            )

    async def decode(self, file: MemoryFile) -> list[Clip]:
        """Decode a file in one of as many threads; see decode_here."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.decode_here, file)

    def decode_here(self, file: MemoryFile) -> list[Clip]:
        """Decode a file as sharding does, one clip per region.

        Raises:
            Refused: 422 with sharding's reason; 415 for what is no recording at all.

        """
        _refuse_other_kinds(file.path)
        converted = self._convert(file)
        if converted.fault:  # a place in our own code
            _log.warning("decoder failed: %s", converted.fault)
        if converted.refusal is not None:
            raise Refused(422, str(converted.refusal), converted.refusal.meaning)
        return [_squared(clip, self._size) for clip in converted.clips]

    def close(self) -> None:
        """End all children."""
        self._pool.shutdown()
        while not self._converters.empty():
            with self._converters.get():
                pass

    def _convert(self, file: MemoryFile) -> Converted:
        task = Task(DESCRIPTOR, "upload", self._limits.choice, self._limits.pixels, self._limits.profiles)
        converter = self._converters.get()
        try:
            return converter.convert_file(task, file.fileno())
        finally:
            self._converters.put(converter)


def _refuse_other_kinds(path: Path) -> None:
    try:
        kind = kind_of(path)
    except Rejected as refusal:
        raise Refused(415, str(refusal.reason), refusal.reason.meaning) from None
    if kind == "archive":
        raise Refused(415, str(Reason.NESTED_ARCHIVE), "archives are not unpacked here; send one recording")


def _squared(clip: EncodedClip, size: int) -> Clip:
    """Through the stored form, so that the vectors are those of the shards."""
    region = decode_region(clip.region_png)
    assert region is not None, "encode_region wrote it"
    frames = [decode_grey("upload", "jpg", data) * region for data in clip.frames]
    squares = squares_of(frames, region, clip.percentiles, size)
    return Clip(squares, clip.frame_ids, clip.times_ms, clip.certificate)
