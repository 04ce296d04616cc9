"""Lists of forbidden names: what is looked for in every way to save them, and where it is found."""

import io
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.forbidden import Forbidden, load_forbidden
from sharding.recording import InputError
from tests.cases.forbid_lists import LISTS

NOISE = np.random.default_rng(0).integers(128, 256, 1 << 19, dtype=np.uint8).tobytes()  # no ASCII letter in it


def forbidden(folder: Path, text: str | bytes) -> Forbidden:
    path = folder / "names.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_forbidden(path)


@pytest.mark.parametrize("kind", LISTS)
def test_every_way_to_save_a_list_finds_the_name(kind: str, tmp_path: Path) -> None:
    found = forbidden(tmp_path, LISTS[kind])
    assert found.find("manifest.json", b'{"dataset":"mueller"}') is not None
    assert found.find("manifest.json", b'{"dataset":"meyer"}') is None
    assert found.find("train-00000-000.tar", NOISE) is None
    hit = found.find("train-00000-000.tar", NOISE[:-3] + b"MUELLER" + NOISE)
    assert hit is not None
    assert hit.start == len(NOISE) - 3


@pytest.mark.parametrize("listed", ["Müller", "MÜLLER", "mu\u0308ller", "müller\u00a0"])
@pytest.mark.parametrize(
    "written",
    [
        "müller".encode(), "MÜLLER".encode(), "MU\u0308LLER".encode(), "Müller".encode("latin-1"),
        "MÜLLER".encode("latin-1"), rb"M\u00fcller", rb"M\u00DCLLER", rb"mu\u0308ller",
    ],
)  # fmt: skip
def test_letter_case_and_composition_make_no_difference(listed: str, written: bytes, tmp_path: Path) -> None:
    hit = forbidden(tmp_path, listed).find("x.json", b"a " + written + b" b")
    assert hit == (2, len(written), 1)


@pytest.mark.parametrize(
    ("listed", "written"),
    [
        ("Straße", "STRASSE"), ("STRASSE", "straße"), ("O'Brien", "o&#x27;brien"), ("Ωmega", "ωMEGA"),
        ("Иванов", "ИВАНОВ"), ("van  der Berg", "Van der berg"), ("李小龙", "李小龙"), ("4711", "4711"), ("Li", "li"),
    ],
)  # fmt: skip
def test_other_scripts_and_short_strings_are_found(listed: str, written: str, tmp_path: Path) -> None:
    found = forbidden(tmp_path, listed)
    assert found.find("x.json", f'{{"a":"{written}"}}'.encode()) is not None
    assert found.find("x.tar", NOISE + written.encode()) is not None


@settings(deadline=None, max_examples=60)
@given(
    name=st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x52F), min_size=6, max_size=12),
    form=st.sampled_from(["NFC", "NFD"]),
    change=st.sampled_from([str, str.lower, str.upper]),
    at=st.integers(0, 3 << 18),
)
def test_a_name_is_found_at_any_place(
    name: str, form: str, change: object, at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = forbidden(tmp_path_factory.mktemp("list"), f"no name of anybody\n{name}\n")
    written = unicodedata.normalize(form, change(name)).encode()  # type: ignore[operator]
    hit = found.find("x.tar", bytes(at) + written)
    assert hit is not None
    assert (hit.start, hit.line) == (at, 2)


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_short_parts_are_looked_for_as_words_of_text_only(tmp_path: Path) -> None:
    found = forbidden(tmp_path, "Mustermann^Anna^Li")
    tar = tar_of({"abc.jpg": b"\xff\xd8 anna \xff", "abc.json": b'{"clip":"xannax7","dataset":"a"}'})
    assert found.find("x.tar", tar) is None
    for data in (tar_of({"abc.json": b'{"label":"ANNA"}'}), tar_of({"anna.jpg": b"\xff"})):
        hit = found.find("x.tar", data)
        assert hit is not None
        assert data[hit.start : hit.start + hit.num_bytes].lower() == b"anna"
    assert found.find("x.tar", tar_of({"abc.jpg": b"\xff\xd8 Mustermann"})) is not None
    assert len(found) == 3  # the whole name, Mustermann, Anna
    assert [line.partition("names.txt: ")[2] for line in found.remarks] == [
        "1 names with ^ are looked for as they are, and by their parts",
        "1 parts of fewer than 4 letters are not looked for",
    ]


def test_rows_of_cells_are_split_and_said(tmp_path: Path) -> None:
    found = forbidden(tmp_path, '"Meier, Eva";4711;f\nSchulze;0815;m\n')
    assert {*found.anywhere, *found.words} == {"meier, eva", "4711", "schulze", "0815"}
    assert "2 lines hold several cells, the first is line 1; each cell is looked for on its own" in found.remarks[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf\r\n \r\n", "no line in it"),
        (b"a,b\nLi;m\n", "no line of it has a part of 4 letters or more"),
        ("Müller".encode("latin-1"), "line 1 is not UTF-8; it seems to be Windows-1252, .* 'Müller'"),
        ("Anna".encode("utf-16-le"), "holds zero bytes"),
    ],
)
def test_a_list_that_leaves_nothing_to_look_for_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"forbid .*names\.txt: {message}"):
        forbidden(tmp_path, content)


def test_many_strings_are_told_apart(tmp_path: Path) -> None:
    names = [f"name{number:05d}x" for number in range(5000)]
    found = forbidden(tmp_path, "\n".join(names))
    assert len(found) == 5000
    assert found.find("x.tar", NOISE + b"name04321x") == (len(NOISE), 10, 4322)
    assert found.find("x.tar", NOISE + b"name04321y") is None
