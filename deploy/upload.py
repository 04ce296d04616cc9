"""One upload: received within limits into memory, decoded in a killable child, refused with a named reason.

Nothing of it is written to a disk. Decoders that want a file get a path, /proc/PID/fd/N, of a memory file
(memfd_create): pages of this process without a name in any file system, gone when it closes. Like all memory they may
be swapped out where a host has swap; turn that off or encrypt it. File names of uploads are never looked at.
"""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, Self

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from deploy.embed import squares_of
from sharding.convert import Converted, EncodedClip, Task
from sharding.isolate import Converter
from sharding.policy import Limits
from sharding.preprocess import Pixels
from sharding.profiles import Profile
from sharding.recording import FrameChoice, InputError, Reason, Rejected
from sharding.sample import decode_grey, decode_region, encode_region
from sharding.sources import kind_of

logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)  # it logs bytes of what it cannot parse

_FAULTS = {Reason.CRASHED, Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.NOT_READABLE_KIND}
_NOWHERE = Path(os.devnull)  # archives, whose members need a folder, are refused before


@dataclass(frozen=True)
class UploadLimits:
    """What one upload may cost, and what of it may be used.

    Attributes:
        num_bytes: of the body.
        body_seconds: until the body must be there.
        decode: time and memory of the decoder, tried twice.
        choice: frames that are embedded, evenly spaced.
        pixels: what vouches for them; see preprocess.cut_clips.
        profiles: signed by the site.

    """

    num_bytes: int = 64 << 20
    body_seconds: float = 30
    decode: Limits = field(default_factory=lambda: Limits(seconds=20))
    choice: FrameChoice = field(default_factory=FrameChoice)
    pixels: Pixels = "certified"
    profiles: tuple[Profile, ...] = ()


class Refused(Exception):  # noqa: N818 - a verdict, not an error
    """A request that is not answered with vectors.

    Args:
        status: HTTP status, 4xx or 503.
        reason: code; one of sharding's where it is about the content.
        meaning: for people.

    """

    def __init__(self, status: int, reason: str, meaning: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.meaning = status, reason, meaning


class MemoryFile:
    """Anonymous memory that has a path; see the module.

    Attributes:
        num_bytes: written so far.

    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("upload")
        self.num_bytes = 0

    @property
    def path(self) -> Path:
        """For processes of the same user."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def write(self, data: bytes) -> None:
        """Append."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self.num_bytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self._fd)


class _Sink(Protocol):
    """Takes a body."""

    def write(self, data: bytes) -> None: ...


class _OnePart:
    """Takes the one file out of a multipart/form-data body."""

    def __init__(self, boundary: bytes, file: MemoryFile) -> None:
        if not boundary:
            raise _malformed()
        self._file, self._num_parts, self._is_whole = file, 0, False
        self._parser = MultipartParser(
            boundary, {"on_part_begin": self._begin, "on_part_data": self._data, "on_end": self._end}
        )

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise _malformed() from None

    def finish(self) -> None:
        """Check that nothing is missing."""
        if not self._is_whole:
            raise _malformed()

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > 1:
            raise Refused(400, "several_files", "one upload a request")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])

    def _end(self) -> None:
        self._is_whole = True


def _malformed() -> Refused:
    return Refused(400, "malformed_multipart", "the body is no whole multipart/form-data with one file")


async def receive(request: Request, limits: UploadLimits, file: MemoryFile) -> None:
    """Pour the upload, a raw body or the one part of a multipart body, into a memory file.

    Raises:
        Refused: `body_too_large` (413), before it is read where its length is announced; `slow_body` (408); 400 for
            `malformed_multipart`, `several_files`, `no_file`, `disconnected`.

    """
    check_size(int(request.headers.get("content-length") or 0), limits)
    kind, options = parse_options_header(request.headers.get("content-type"))
    parts = _OnePart(options.get(b"boundary", b""), file) if kind == b"multipart/form-data" else None
    try:
        async with asyncio.timeout(limits.body_seconds):
            await _pour(request, limits, parts or file)
    except TimeoutError:
        raise Refused(408, "slow_body", f"the body was not there after {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "disconnected", "the client went away") from None
    if parts:
        parts.finish()
    if not file.num_bytes:
        raise Refused(400, "no_file", "send one DICOM, image or video as the body or as multipart/form-data")


async def _pour(request: Request, limits: UploadLimits, sink: _Sink) -> None:
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        check_size(num_bytes, limits)
        sink.write(chunk)


def check_size(num_bytes: int, limits: UploadLimits) -> None:
    """Refuse so many bytes: `body_too_large` (413)."""
    if num_bytes > limits.num_bytes:
        raise Refused(413, "body_too_large", f"at most {limits.num_bytes} bytes")


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
            self._converters.put(Converter(limits.decode, _NOWHERE))
        self._pool = ThreadPoolExecutor(num_decoders, "decoder")
        for _ in range(num_decoders):
            self._try()

    def _try(self) -> None:
        """Decode a small picture: the first child takes a second to start, and a limit may be too low for any."""
        with MemoryFile() as file:
            file.write(encode_region(np.ones((8, 8), dtype=bool)))
            converted = self._convert(file.path)
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
        converted = self._convert(file.path)
        if converted.fault:  # a place in our own code
            logging.getLogger("us_jepa.serve").warning("decoder failed: %s", converted.fault)
        if converted.refusal is not None:
            raise Refused(422, str(converted.refusal), converted.refusal.meaning)
        return [_squared(clip, self._size) for clip in converted.clips]

    def close(self) -> None:
        """End all children."""
        self._pool.shutdown()
        while not self._converters.empty():
            with self._converters.get():
                pass

    def _convert(self, path: Path) -> Converted:
        task = Task(path, "upload", self._limits.choice, self._limits.pixels, self._limits.profiles)
        converter = self._converters.get()
        try:
            (converted,) = converter.convert(task)
        finally:
            self._converters.put(converter)
        return converted


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
