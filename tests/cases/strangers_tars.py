"""Tars of pictures as other people make them, all with the same 32 pictures unless the name says otherwise.

Sources: webdataset #330 and #331, devsnd/tarindexer #9 (names that are no UTF-8); webdataset #11, #140, #258, PR 100
(members of a sample not side by side); cesium #262 (macOS `._` files); webdataset #2 (empty tar); open_clip #480 (names
with two dots); gaps, huge json, upper case, links.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import cv2

from tests.cases.scans import cine

NUM = 32
Members = list[tuple[str, bytes | tarfile.TarInfo]]


@cache
def pictures() -> tuple[bytes, ...]:
    """JPEG files, all different."""
    return tuple(cv2.imencode(".jpg", cine(1, 48, 64, seed=number)[0])[1].tobytes() for number in range(NUM))


def write(path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write members (name, content or header alone) to a tar; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(prefix: str = "s") -> Iterator[tuple[str, bytes]]:
    """A picture and its json, 32 times."""
    for number, jpg in enumerate(pictures()):
        yield f"{prefix}{number:04}.jpg", jpg
        yield f"{prefix}{number:04}.json", json.dumps({"caption": "liver", "label": number % 2}).encode()


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tuple[str, tarfile.TarInfo]:
    """A member that is a link to another name, hard unless the kind is another one."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def named(pattern: str) -> Members:
    """The pictures alone, by a pattern of their number."""
    return [(pattern.format(number), jpg) for number, jpg in enumerate(pictures())]


def _names() -> dict[str, tuple[Members, int]]:
    both, latin = list(pairs()), list(pairs("M\udcfcller_"))  # one byte 0xfc, as ISO 8859-1 writes it
    ustar, gnu, pax = tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    apple = [x for name, data in both for x in ((f"._{name}", b"\0\5\x16\7junk"), (name, data))]
    return {
        "plain": ([*both], ustar),
        "latin1_ustar": ([*latin], ustar),
        "latin1_gnu": ([*latin], gnu),
        "latin1_one": ([*both[:-2], *latin[:2]], ustar),
        "latin1_pax": ([*latin], pax),
        "latin1_folder": (list(pairs("M\udcfcller/x")), ustar),
        "latin1_ext": ([*named("s{:04}.jpg"), ("s0031.n\udcfctes", b"x")], ustar),
        "utf8": (list(pairs("Müller_")), ustar),
        "apple_double": ([*apple], pax),
        "uid_names": (named("1.2.840.{}.jpg"), ustar),
        "upper": (named("S{:04}.JPG"), ustar),
        "long_names": (list(pairs("d/" * 60 + "x")), gnu),
        "key_extension": ([("s0000.key", b"k"), *named("t{:04}.jpg")], ustar),
    }


def _contents() -> dict[str, tuple[Members, int]]:
    both, ustar = list(pairs()), tarfile.USTAR_FORMAT
    jpgs, jsons = ([m for m in both if m[0].endswith(end)] for end in ("jpg", "json"))
    regions = [x for name, data in jpgs for x in ((name, data), (name.replace("jpg", "region.png"), b"none"))]
    linked = [both[0], *(link(f"t{number:04}.jpg", both[0][0]) for number in range(NUM))]
    return {
        "not_adjacent": ([*jpgs, *jsons], ustar),
        "two_dots": (named("s{:04}.input.jpg"), ustar),
        "hard_links": ([*linked], ustar),
        "soft_links": ([both[0], link("t.jpg", both[0][0], tarfile.SYMTYPE)], ustar),
        "broken_link": ([both[0], link("t.jpg", "../objects/1f/2e.jpg", tarfile.SYMTYPE)], ustar),
        "json_only": ([*jsons], ustar),
        "huge_json": ([both[0], ("s0000.json", b"[" + b"1," * 4_000_000 + b"1]"), *both[2:]], ustar),
        "same_key_twice": (both + both, ustar),
        "same_member_twice": ([both[0], both[0], *both[2:]], ustar),
        "gif_member": (named("s{:04}.gif"), ustar),
        "npy_member": ([(f"s{number:04}.npy", b"\x93NUMPY") for number in range(NUM)], ustar),
        "one_missing": ([m for m in both if m[0] != "s0005.jpg"], ustar),
        "no_extension": ([*both, *((f"IM{number:04}", jpg) for number, jpg in enumerate(pictures()))], ustar),
        "region_by_name": ([*regions], ustar),
    }


def _bytes() -> dict[str, bytes]:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in pairs():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    plain = data.getvalue()
    return {
        "empty_file": b"",
        "empty_tar": bytes(10240),
        "gz_named_tar": gzip.compress(plain),
        "text": b"not found\n" * 200,
        "two_tars": plain + plain,
        "damaged_header": plain[:512] + plain[512:].replace(b"ustar", b"\0\0\0\0\0", 1),
    }


NAMES = (
    *("plain", "latin1_ustar", "latin1_gnu", "latin1_one", "latin1_pax", "latin1_folder", "latin1_ext", "utf8"),
    *("apple_double", "uid_names", "upper", "long_names", "key_extension"),
    *("not_adjacent", "two_dots", "hard_links", "soft_links", "broken_link", "json_only", "huge_json"),
    *("same_key_twice", "same_member_twice", "gif_member", "npy_member", "one_missing", "no_extension"),
    *("region_by_name", "empty_file", "empty_tar", "gz_named_tar", "text", "two_tars", "damaged_header"),
)


def make(name: str, folder: Path) -> Path:
    """Write FOLDER/NAME/x.tar; returns its folder."""
    path = folder / name / "x.tar"
    known = _names() | _contents()
    if name in known:
        members, form = known[name]
        write(path, members, form)
    else:
        path.parent.mkdir(parents=True)
        path.write_bytes(_bytes()[name])
    return path.parent
