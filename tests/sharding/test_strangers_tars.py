"""Tars of strangers: each streams whole, or is one sentence; nothing of one is lost unsaid."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.shards import preview, verify_shards
from sharding.reader import BadSampleError
from sharding.recording import InputError
from sharding.tar_index import load_index, scan
from sharding.tar_members import members_of
from tests.cases.cut_tar import cuts
from tests.cases.strangers_tars import NAMES, link, make, pairs, pictures, write
from tests.conftest import run_command
from tests.sharding.streams import global_batches, open_stream


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("US_JEPA_CACHE", str(folder))
    return folder


SIDE_BY_SIDE = "sample 32 has the same key: the members of a sample must lie side by side"
# name -> samples, bad ones, and what the first bad one says; or the sentence that refuses the tar
STREAMED = {
    "plain": (32, 0, ""),
    "latin1_ustar": (32, 0, ""),
    "latin1_gnu": (32, 0, ""),
    "latin1_one": (32, 0, ""),
    "latin1_pax": (32, 0, ""),
    "latin1_folder": (32, 0, ""),
    "latin1_ext": (32, 0, ""),
    "utf8": (32, 0, ""),
    "apple_double": (32, 0, ""),
    "uid_names": (1, 1, "a key ends at the first dot of a name, so name a picture with one dot"),
    "upper": (32, 0, ""),
    "long_names": (32, 0, ""),
    "key_extension": (33, 1, "sample s0000: no picture; it has ['key'], known are ['bmp', 'jpeg',"),
    "not_adjacent": (64, 32, SIDE_BY_SIDE.replace("32", "0")),
    "two_dots": (32, 32, "no picture; it has ['input.jpg'], known are"),
    "hard_links": (33, 0, ""),
    "soft_links": (2, 0, ""),
    "broken_link": "member 't.jpg' is a link to '../objects/1f/2e.jpg', which is not in the tar before it",
    "json_only": (32, 32, "sample s0000: no picture; it has ['json']"),
    "huge_json": (32, 0, ""),
    "same_key_twice": (64, 0, ""),
    "same_member_twice": "sample 's0000' has two members .jpg, the second is 's0000.jpg'; readers would lose",
    "gif_member": (32, 32, "sample s0000: no picture; it has ['gif'], known are"),
    "npy_member": (32, 32, "sample s0000: no picture; it has ['npy']"),
    "one_missing": (32, 1, "sample s0005: no picture; it has ['json']"),
    "no_extension": (32, 0, ""),
    "region_by_name": (32, 32, "sample s0000: no .json; it has ['jpg', 'region.png']"),
    "empty_file": "not an uncompressed tar (empty file)",
    "empty_tar": "no sample in",
    "gz_named_tar": "not an uncompressed tar (it is compressed with gzip); make it again",
    "text": "not an uncompressed tar",
    "two_tars": "another tar follows its end at byte",
    "damaged_header": "damaged: no header at byte",
}


def test_every_variant_has_a_verdict() -> None:
    assert set(STREAMED) == set(NAMES)


@pytest.mark.parametrize("name", STREAMED)
def test_each_tar_streams_whole_or_is_one_sentence(name: str, tmp_path: Path) -> None:
    folder, verdict = make(name, tmp_path), STREAMED[name]
    if isinstance(verdict, str):
        with pytest.raises(InputError) as caught:
            open_stream([str(folder)], tmp_path)
        assert verdict in str(caught.value)
        return
    num, num_bad, text = verdict
    dataset = open_stream([str(folder)], tmp_path)
    assert dataset.order.num_samples == num
    samples = dict(dataset.samples(np.arange(num)))
    bad = [str(sample) for sample in samples.values() if isinstance(sample, BadSampleError)]
    assert len(bad) == num_bad
    assert not bad or (text in bad[0] and str(folder / "x.tar") in bad[0])
    assert dataset.batch(np.arange(num)).num_bad.tolist() == [0, num_bad]


def test_names_that_are_no_utf8_pass_through_decoding_processes(tmp_path: Path) -> None:
    plain, latin = (open_stream([str(make(name, tmp_path))], tmp_path) for name in ("plain", "latin1_pax"))
    keys = [sample.key for _, sample in latin.samples(np.arange(32)) if not isinstance(sample, BadSampleError)]
    assert sorted(keys) == [f"M\udcfcller_{number:04}" for number in range(32)]
    assert (latin.batch(np.arange(32)).pixels == plain.batch(np.arange(32)).pixels).all()
    assert global_batches(latin, 0, 2, num_workers=1) == global_batches(latin, 0, 2)


def test_a_link_has_the_bytes_of_what_it_leads_to(tmp_path: Path) -> None:
    jpg = pictures()[3]
    members = [("a/x.jpg", jpg), link("b.jpg", "./a/x.jpg"), link("a/c.jpg", "x.jpg", tarfile.SYMTYPE)]
    path = write(tmp_path / "x.tar", [*members, link("LATEST", "elsewhere", tarfile.SYMTYPE)])
    data = path.read_bytes()
    assert [(m.name, data[m.start : m.end] == jpg) for m in members_of(path)] == [
        ("a/x.jpg", True), ("b.jpg", True), ("a/c.jpg", True),
    ]  # fmt: skip


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [link("a.jpg", "", tarfile.GNUTYPE_SPARSE)], tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match=r"member 'a\.jpg' is a sparse file.*`--sparse`"):
        scan(path)


def test_hundreds_of_extensions_are_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [(f"1.2.840.10008.{number}.jpg", b"x") for number in range(700)])
    assert len(scan(path)) == len(load_index(path)) == 1


CUTS = {
    "before_header": "cut short: it stops at a header, at byte",
    "in_header": "cut short: it stops inside a header, at byte",
    "after_header": "cut short: it stops in the data",
    "in_data": "cut short: it stops in the data",
    "in_padding": "cut short: it stops in the data",
    "no_end_blocks": "cut short: it stops at a header, at byte",
    "one_end_block": "",
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("where", CUTS)
def test_a_tar_without_its_end_is_an_error(where: str, form: int, tmp_path: Path) -> None:
    prefix = "s" if form == tarfile.USTAR_FORMAT else "ä" * 60  # other formats differ in long names
    plain = write(tmp_path / "plain.tar", pairs(prefix), form)
    cut = tmp_path / "cut" / "x.tar"
    cut.parent.mkdir()
    cut.write_bytes(cuts(plain.read_bytes())[where])
    if not CUTS[where]:
        assert open_stream([str(cut.parent)], tmp_path).order.num_samples == 32
        return
    with pytest.raises(InputError) as caught:
        open_stream([str(cut.parent)], tmp_path)
    assert str(caught.value).startswith(f"shard {cut}: {CUTS[where]}")
    assert str(caught.value).endswith("; get it again")


MEMBERS_APART = "members of sample 's0000' do not lie side by side: 's0000.jpg' is member 1, 's0000.jpg' member 65"
# what verify says where it is not the sentence of the stream
VERIFIED = {
    "not_adjacent": MEMBERS_APART.replace("'s0000.jpg' member 65", "'s0000.json' member 33"),
    "same_key_twice": MEMBERS_APART,
}


@pytest.mark.parametrize("name", STREAMED)
def test_verify_names_the_first_bad_sample_of_a_strangers_tar(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, verdict = make(name, tmp_path), STREAMED[name]
    num, num_bad, text = (0, 1, verdict) if isinstance(verdict, str) else verdict
    text = VERIFIED.get(name, text)
    if text:
        with pytest.raises(InputError) as caught:
            verify_shards(str(folder))
        assert text in str(caught.value)
        return
    verify_shards(str(folder))
    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: {num} samples in 1 tars are whole\n")
    assert "there is no manifest, so nothing says that these are the bytes that were written" in said
    left_out = {"apple_double": 64, "no_extension": 32}.get(name, 0)
    assert (f"{left_out} members belong to no sample" in said) == bool(left_out)
    assert num_bad == 0


def test_verify_and_preview_of_strangers_are_commands(tmp_path: Path) -> None:
    good, bad = make("latin1_gnu", tmp_path), make("one_missing", tmp_path)
    (tmp_path / "names.txt").write_text("LIVER\n")
    done = run_command("us-jepa", "verify", str(good))
    assert (done.returncode, done.stderr) == (0, "")
    done = run_command("us-jepa", "verify", str(good), "--forbid", str(tmp_path / "names.txt"))
    assert done.returncode == 2
    assert f"{good}/x.tar: a forbidden string occurs at byte" in done.stderr
    done = run_command("us-jepa", "verify", f"{bad}/x.tar")
    assert done.returncode == 2
    assert f"shard {bad}/x.tar: sample s0005: no picture; it has ['json']" in done.stderr
    done = run_command("us-jepa", "preview", str(bad), "--to", str(tmp_path / "x.png"), "--frames", "40")
    assert done.returncode == 0
    assert f"31 frames of {bad}: {tmp_path}/x.png\n1 samples cannot be read, the first: shard {bad}" in done.stdout
    sheet = cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (4 * 128, 8 * 128)
    tiles = [tile for row in np.split(sheet, 4) for tile in np.split(row, 8, axis=1)]
    assert [tile.std() > 5 for tile in tiles] == [True] * 31 + [False]


def test_preview_of_pictures_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    folder = make("npy_member", tmp_path)
    with pytest.raises(InputError, match=r"none of the 9 samples that were tried can be shown; the first: .*\['npy'\]"):
        preview(str(folder), tmp_path / "x.png", 9)


def test_tars_that_are_gone_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shard .*/a\.tar: No such file or directory; bring it back"):
        open_stream([f"{tmp_path}/{{a,b}}.tar"], tmp_path)
