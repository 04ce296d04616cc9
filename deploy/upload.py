"""One upload: received within limits into memory, or refused with a named reason.

Nothing of it is written to a disk. Decoders that want a file are handed the descriptor of a memory file (memfd_create):
pages of this process without a name in any file system, gone when it closes. Like all memory they may be swapped out
where a host has swap; turn that off or encrypt it. File names of uploads are never looked at.
"""

import asyncio
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from sharding.policy import Limits
from sharding.preprocess import Pixels
from sharding.profiles import Profile
from sharding.recording import FrameChoice

_AS_IT_IS = {"", "identity", "binary", "8bit", "7bit"}

logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)  # it logs bytes of what it cannot parse


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
        status: HTTP status, 4xx or 5xx.
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

    def fileno(self) -> int:
        """Its descriptor."""
        return self._fd

    @property
    def path(self) -> Path:
        """For this process, and others of the same user that are not confined."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def write(self, data: bytes) -> None:
        """Append."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self.num_bytes += len(data)

    def clear(self) -> None:
        """Drop what was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self._fd)


class _Sink(Protocol):
    """Takes a body."""

    def write(self, data: bytes) -> None: ...


class _OneFile:
    """Takes the one file out of a multipart/form-data body; text fields beside it are skipped.

    A part that names a file is one, and so is a part that says nothing of itself. A text field is taken for the file
    where the body has no other part, as `curl -F "file=<scan.dcm"` sends it.
    """

    def __init__(self, boundary: bytes, file: MemoryFile) -> None:
        if not boundary:
            raise _malformed()
        self._file, self._num_files, self._num_fields, self._is_whole = file, 0, 0, False
        self._is_taken, self._name, self._headers = False, b"", dict[bytes, bytes]()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_begin": self._begin_header,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_headers_finished": self._begin,
                "on_part_data": self._data,
                "on_end": self._end,
            },
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

    def _begin_header(self) -> None:
        self._name = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._name] = self._headers.get(self._name, b"") + data[start:end]

    def _begin(self) -> None:
        for name in (b"content-encoding", b"content-transfer-encoding"):
            _check_encoding(self._headers.get(name, b"").decode("latin-1"))
        if _is_file(self._headers.get(b"content-disposition", b"")):
            self._num_files += 1
            self._is_taken = True
        else:
            self._num_fields += 1
            self._is_taken = self._num_files == 0 and self._num_fields == 1
        if self._num_files > 1:
            raise Refused(400, "several_files", "one upload a request")
        if self._is_taken or not self._num_files:
            self._file.clear()  # of a text field that came before

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_taken:
            self._file.write(data[start:end])

    def _end(self) -> None:
        self._is_whole = True


def _is_file(disposition: bytes) -> bool:
    """Whether a part is a file: a browser sends an empty name where none was chosen."""
    _, options = parse_options_header(disposition)
    return bool(options.get(b"filename")) or b"filename*=" in disposition.lower() or b"name" not in options


def _check_encoding(encoding: str) -> None:
    """Refuse bytes that are packed for the way: `content_encoding` (415)."""
    if not {one.strip().lower() for one in encoding.split(",")} <= _AS_IT_IS:
        raise Refused(415, "content_encoding", "send the file as it is, without Content-Encoding")


def _malformed() -> Refused:
    return Refused(400, "malformed_multipart", "the body is no whole multipart/form-data with one file")


async def receive(request: Request, limits: UploadLimits, file: MemoryFile) -> None:
    """Pour the upload, a raw body or the one file of a multipart body, into a memory file.

    Raises:
        Refused: `body_too_large` (413), before it is read where its length is announced; `content_encoding` (415);
            `slow_body` (408); 400 for `malformed_multipart`, `several_files`, `no_file`, `disconnected`.

    """
    check_size(int(request.headers.get("content-length") or 0), limits)
    _check_encoding(request.headers.get("content-encoding", ""))
    kind, options = parse_options_header(request.headers.get("content-type"))
    parts = _OneFile(options.get(b"boundary", b""), file) if kind == b"multipart/form-data" else None
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
