"""Uploads as clients send them: forms with other fields, names of every kind, bodies that are packed for the way."""

import gzip
import zlib
from pathlib import Path

import pytest

from tests.deploy.server import Server

FORM = "multipart/form-data; boundary=edge"
FILE = b'Content-Disposition: form-data; name="file"; filename="scan.dcm"'
FIELD = b'Content-Disposition: form-data; name="note"'
NO_FILE = b'Content-Disposition: form-data; name="other"; filename=""\r\nContent-Type: application/octet-stream'


@pytest.fixture(scope="module")
def dicom(labelled: Path) -> bytes:
    return (labelled / "r0000_0.dcm").read_bytes()


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """A body of parts, each its header and its content."""
    heads = [head + b"\r\n" if head else b"" for head, _ in parts]
    whole = b"".join(
        b"--edge\r\n" + head + b"\r\n" + data + b"\r\n" for head, (_, data) in zip(heads, parts, strict=True)
    )
    return whole + b"--edge--\r\n"


WITH_ONE_FILE = {  # headers of the parts; the one that is empty here is the recording's
    "alone": [(FILE, b"")],
    "a text field after it": [(FILE, b""), (FIELD, b"a note")],
    "a text field before it": [(FIELD, b"a note"), (FILE, b"")],
    "fields around it": [(FIELD, b"1"), (FIELD, b"2"), (FILE, b""), (FIELD, b"3"), (FIELD, b"x" * 70_000)],
    "an empty field": [(FIELD, b" "), (FILE, b"")],
    "a file that was not chosen": [(NO_FILE, b"\r\n"), (FILE, b"")],
    "with a type": [(FILE + b"\r\nContent-Type: application/dicom", b"")],
    "binary, as mail says": [(FILE + b"\r\nContent-Transfer-Encoding: binary", b"")],
    "named in UTF-8": [(b"Content-Disposition: form-data; name=f; filename*=UTF-8''%C3%BCber.dcm", b""), (FIELD, b"n")],
    "letter case and order": [
        (b'content-type: image/png\r\nCONTENT-DISPOSITION: form-data; filename="a;b"; name=x', b"")
    ],
    "without any header": [(b"", b"")],
    "no file name": [(b'Content-Disposition: form-data; name="file"', b"")],  # curl -F "file=<scan.dcm"
}


@pytest.mark.parametrize("name", WITH_ONE_FILE)
def test_a_form_with_one_file_is_one_upload(name: str, guarded: Server, dicom: bytes) -> None:
    parts = [(head, data or dicom) for head, data in WITH_ONE_FILE[name]]
    reply = guarded.ask("/embed", form(*parts), content_type=FORM)
    assert reply.status == 200, reply.body
    assert reply.json()["frames"] == guarded.ask("/embed", dicom).json()["frames"]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([(FILE, b"a"), (FILE, b"b")], "several_files"),
        ([(FIELD, b"1"), (FILE, b"a"), (FIELD, b"2"), (FILE, b"b")], "several_files"),
        ([(FIELD, b"1"), (FIELD, b"2")], "no_file"),
        ([(NO_FILE, b"")], "no_file"),
        ([(FILE, b""), (FIELD, b"a note")], "no_file"),
        ([], "malformed_multipart"),
    ],
)
def test_forms_without_one_file_are_named(parts: list[tuple[bytes, bytes]], reason: str, guarded: Server) -> None:
    body = form(*parts) if parts else b"--other--\r\n"
    reply = guarded.ask("/embed", body, content_type=FORM)
    assert (reply.status, reply.json()["reason"]) == (400, reason)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
def test_a_packed_body_is_named(encoding: str, guarded: Server, dicom: bytes) -> None:
    packed = zlib.compress(dicom) if encoding == "deflate" else gzip.compress(dicom)
    for body, kind in ((packed, "application/dicom"), (form((FILE, packed)), FORM)):
        reply = guarded.ask("/embed", body, content_type=kind, content_encoding=encoding)
        assert (reply.status, reply.json()["reason"]) == (415, "content_encoding")
        assert reply.json()["meaning"] == "send the file as it is, without Content-Encoding"


@pytest.mark.parametrize("header", [b"Content-Encoding: gzip", b"Content-Transfer-Encoding: base64"])
def test_a_packed_part_is_named(header: bytes, guarded: Server, dicom: bytes) -> None:
    reply = guarded.ask("/embed", form((FILE + b"\r\n" + header, dicom)), content_type=FORM)
    assert (reply.status, reply.json()["reason"]) == (415, "content_encoding")


@pytest.mark.parametrize("encoding", ["identity", "", "Identity"])
def test_a_body_that_is_not_packed_is_read(encoding: str, guarded: Server, dicom: bytes) -> None:
    assert guarded.ask("/embed", dicom, content_encoding=encoding).status == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/dicom", 200),
        ("application/octet-stream", 200),
        ("application/x-www-form-urlencoded", 200),  # curl --data-binary
        ("text/plain; charset=utf-8", 200),
        ('multipart/form-data; boundary="edge"', 200),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
    ],
)
def test_content_types(kind: str, status: int, guarded: Server, dicom: bytes) -> None:
    body = form((FILE, dicom), (FIELD, b"a note")) if kind.startswith("multipart") else dicom
    reply = guarded.ask("/embed", body, content_type=kind)
    assert reply.status == status
    assert status == 200 or reply.json()["reason"] == "malformed_multipart"


def test_gzip_without_a_header_is_an_archive(guarded: Server, dicom: bytes) -> None:
    reply = guarded.ask("/embed", gzip.compress(dicom))
    assert (reply.status, reply.json()["reason"]) == (415, "nested_archive")
