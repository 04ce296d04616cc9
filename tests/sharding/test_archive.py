"""Archives: members one by one, and every trick that an archive can play."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.recording import FrameChoice, Reason, Rejected
from sharding.sources import kind_of, read
from sharding.sources.archive import MEMBER, Step, unpack
from tests.cases.cut_tar import cuts

PNG = b"\x89PNG\r\n\x1a\n"
CONTENT = {"a/one.png": PNG + b"1", "two.png": PNG + b"2" * 3000, "b/c/three.png": PNG + b"3"}


def pack_zip(content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return target.getvalue()


def pack_tar(content: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": pack_zip,
    "stored": lambda content: pack_zip(content, zipfile.ZIP_STORED),
    "lzma": lambda content: pack_zip(content, zipfile.ZIP_LZMA),
    "tar": pack_tar,
    "gz": lambda content: gzip.compress(pack_tar(content)),
    "bz2": lambda content: bz2.compress(pack_tar(content)),
    "xz": lambda content: lzma.compress(pack_tar(content)),
}


def found_in(data: bytes, folder: Path) -> dict[str, bytes | Reason]:
    """Content or refusal of each member."""
    path = folder / "archive"
    path.write_bytes(data)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    found: dict[str, bytes | Reason] = {}
    try:
        for step in unpack(path, "x", work, 0):
            if step.is_done and step.name is not None:
                assert step.refusal or [work / MEMBER] == list(work.iterdir())
                found[step.name] = step.refusal or (work / MEMBER).read_bytes()
    finally:
        assert not list(work.iterdir())
        assert sorted(entry.name for entry in folder.iterdir()) == ["archive", "work"]
    return found


@pytest.mark.parametrize("packer", PACKERS)
def test_members_in_their_order(packer: str, tmp_path: Path) -> None:
    hidden = {"./.DS_Store": b"x", "__MACOSX/._one.png": b"x", "a/": b""}
    found = found_in(PACKERS[packer](CONTENT | (hidden if packer == "zip" else {})), tmp_path)
    assert list(found.items()) == [(f"x!{name}", data) for name, data in CONTENT.items()]
    assert kind_of(tmp_path / "archive") == "archive"
    with pytest.raises(Rejected, match=Reason.NESTED_ARCHIVE):
        read(tmp_path / "archive", "n", FrameChoice())


@pytest.mark.parametrize("packer", ["zip", "tar", "gz"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.png", "a/../../up.png", "C:/x.png", "C:\\x.png", "a\\..\\b.png", "\\\\host\\x"]
)
def test_unsafe_names(packer: str, name: str, tmp_path: Path) -> None:
    found = found_in(PACKERS[packer]({name: PNG, "good.png": PNG}), tmp_path)
    assert found == {f"x!{name}": Reason.UNSAFE_NAME, "x!good.png": PNG}


def test_zero_byte_in_a_name(tmp_path: Path) -> None:
    data = pack_zip({"good.pngX..X": PNG}).replace(b"good.pngX..X", b"good.png\0..\0")
    assert list(found_in(data, tmp_path).values()) == [Reason.UNSAFE_NAME]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert found_in(target.getvalue(), tmp_path) == {"x!link.png": Reason.UNSAFE_NAME}


def test_link_in_a_zip(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert found_in(target.getvalue(), tmp_path) == {"x!link.png": Reason.UNSAFE_NAME}


def test_encrypted_member(tmp_path: Path) -> None:
    data = bytearray(pack_zip({"a.png": PNG, "b.png": PNG}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    assert found_in(bytes(data), tmp_path) == {"x!a.png": Reason.ENCRYPTED, "x!b.png": PNG}


@pytest.mark.parametrize("packer", ["zip", "tar"])
def test_archive_in_an_archive(packer: str, tmp_path: Path) -> None:
    content = {f"inner.{name}": pack(CONTENT) for name, pack in PACKERS.items()} | {"a.png": PNG, "note.txt": b"hello"}
    found = list(found_in(PACKERS[packer](content), tmp_path).values())
    assert found == [Reason.NESTED_ARCHIVE] * len(PACKERS) + [PNG, Reason.NOT_READABLE_KIND]


def test_bombs(tmp_path: Path) -> None:
    zeros = b"\0" * (64 << 20)
    assert found_in(pack_zip({"bomb": zeros, "a.png": PNG}), tmp_path) == {
        "x!bomb": Reason.INFLATE_RATIO,
        "x!a.png": PNG,
    }
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(Rejected, match=Reason.INFLATE_RATIO):
            found_in(pack(pack_tar({".hidden": zeros})), tmp_path)
    found = found_in(pack_zip({"blank.png": PNG + b"\0" * 900_000}), tmp_path)  # small enough to be blank paper
    assert isinstance(found["x!blank.png"], bytes)


def test_members_that_share_bytes(tmp_path: Path) -> None:
    """Every entry of the directory points to one stretch of data."""
    data = pack_zip({"a.png": PNG * 9, "b.png": PNG * 9})
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    shared = bytearray(data)
    struct.pack_into("<I", shared, second + 42, 0)
    with pytest.raises(Rejected, match=f"{Reason.INFLATE_RATIO}|{Reason.UNDECODABLE}"):
        found_in(bytes(shared), tmp_path)


@pytest.mark.parametrize("packer", ["zip", "tar", "gz"])
def test_large_members(packer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharding.sources.archive._MAX_MEMBER", 5000)
    found = found_in(PACKERS[packer]({"a.png": PNG * 1000, "b.png": PNG}), tmp_path)
    assert found == {"x!a.png": Reason.TOO_LARGE, "x!b.png": PNG}


def test_sparse_member(tmp_path: Path) -> None:
    info = tarfile.TarInfo("holes.dcm")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"00000000000\0" * 2  # one piece of nothing
    block[483:495] = b"37777777777\0"  # that stands for gigabytes
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    assert found_in(bytes(block) + b"\0" * 1024, tmp_path) == {"x!holes.dcm": Reason.INFLATE_RATIO}


@pytest.mark.parametrize("packer", ["zip", "gz", "bz2", "xz", "tar"])
def test_broken_archives(packer: str, tmp_path: Path) -> None:
    large = {f"{i}.png": PNG + bytes((i * j * 7919 >> 3) % 256 for j in range(3000)) for i in range(1, 9)}
    data = PACKERS[packer](large)
    with pytest.raises(Rejected, match=Reason.UNDECODABLE):
        found_in(data[: len(data) // 2 + 100], tmp_path)
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 40] = b"\xaa" * 40
    outcome = outcome_of(bytes(damaged), tmp_path)
    if packer == "zip":
        assert Reason.UNDECODABLE in outcome.values()
    elif packer != "tar":  # which has no sums of its content
        assert outcome == {"": Reason.UNDECODABLE}


def outcome_of(data: bytes, folder: Path) -> dict[str, bytes | Reason]:
    """As `found_in`; a refusal of the archive itself goes under the empty name."""
    try:
        return found_in(data, folder)
    except Rejected as refusal:
        return {"": refusal.reason}


@given(st.binary(max_size=300), st.sampled_from([b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b""]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_by_name(data: bytes, magic: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = outcome_of(magic + data, Path(folder))
    allowed = {Reason.UNDECODABLE, Reason.OUT_OF_MEMORY, Reason.INFLATE_RATIO}
    assert outcome.get("", Reason.UNDECODABLE) in allowed


PNGS = {f"{number}.png": PNG + bytes(range(number, number + 200)) * 4 for number in range(5)}


@pytest.mark.parametrize("place", ["before_header", "in_header", "after_header", "in_data", "in_padding"])
def test_a_tar_without_its_end_is_undecodable_and_its_whole_members_are_kept(place: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(cuts(pack_tar(PNGS))[place])
    steps: list[Step] = []
    with pytest.raises(Rejected, match=Reason.UNDECODABLE):
        steps.extend(unpack(path, "a.tar", tmp_path, 0))
    assert not any(step.refusal for step in steps)
    begun = [step.name for step in steps if not step.is_done]
    done = [step.name for step in steps if step.is_done]
    whole = ["a.tar!0.png", "a.tar!1.png"] + ["a.tar!2.png"] * (place == "in_padding")
    assert done == whole
    assert begun == whole + ["a.tar!2.png"] * (place in {"after_header", "in_data"})


def test_a_tar_with_all_members_and_no_end_is_cut_and_one_block_is_an_end(tmp_path: Path) -> None:
    found = cuts(pack_tar(PNGS))
    with pytest.raises(Rejected, match=Reason.UNDECODABLE):
        found_in(found["no_end_blocks"], tmp_path)
    assert found_in(found["one_end_block"], tmp_path) == {f"x!{name}": data for name, data in PNGS.items()}


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    """What follows it would be lost without a word."""
    data = bytearray(pack_tar(PNGS))
    data[data.index(b"2.png") + 150] ^= 0xFF  # its check sum
    with pytest.raises(Rejected, match=Reason.UNDECODABLE):
        found_in(bytes(data), tmp_path)


@pytest.mark.parametrize("packer", PACKERS)
def test_unpacking_goes_on_where_it_was_left(packer: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(PACKERS[packer](PNGS))
    steps = list(unpack(path, "a", tmp_path, 3))
    assert [step.number for step in steps if step.is_done] == [0, 1, 2, 3, 4]
    assert [step.name for step in steps if step.is_done] == [None, None, None, "a!3.png", "a!4.png"]


def test_one_name_twice_and_names_that_are_no_text(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("a.png", "M\udcfcller.png", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    (tmp_path / "a.tar").write_bytes(target.getvalue())
    names = [step.name for step in unpack(tmp_path / "a.tar", "a.tar", tmp_path, 0) if step.is_done]
    assert names == ["a.tar!a.png", "a.tar!M\udcfcller.png", "a.tar!a.png"]
    (tmp_path / "a.zip").write_bytes(pack_zip({"a.png": PNG + b"1", "b.png": PNG + b"2"}).replace(b"b.png", b"a.png"))
    steps = unpack(tmp_path / "a.zip", "a", tmp_path, 0)
    contents = [(tmp_path / MEMBER).read_bytes() for step in steps if step.is_done]
    assert contents == [PNG + b"1", PNG + b"2"]
