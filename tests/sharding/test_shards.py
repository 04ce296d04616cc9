"""What lies on disk: samples, keys, tars, verification, reading back with ours and with stock readers."""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sharding.deidentify import Pseudonyms, allowed_tags, load_key
from sharding.forbidden import load_forbidden
from sharding.manifest import Manifest, ShardInfo, load_manifest
from sharding.policy import Policy
from sharding.preprocess import to_square
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError
from sharding.report import contact_sheet
from sharding.sample import Meta, Sample, decode, decode_region, encode, encode_region, name_members
from sharding.store import Store
from sharding.unit import _Frame, _parts
from sharding.verify import verify
from sharding.writer import _header, write_shard
from tests.conftest import KEY, make_shards


def test_verify_names_the_shard_with_a_flipped_byte(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    assert sum(count for _, count in verify(copy)) == load_manifest(copy).num_samples()
    name = load_manifest(copy).shards[0].name
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: sha256 is .* the manifest says"):
        list(verify(copy))


def test_verify_names_missing_and_foreign_shards(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    (copy / "train-99999-000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-99999-000\.tar is not in the manifest"):
        list(verify(copy))
    (copy / "train-99999-000.tar").unlink()
    (copy / load_manifest(copy).shards[-1].name).unlink()
    with pytest.raises(InputError, match="missing"):
        list(verify(copy))


def rewritten(shards: Path, copy: Path, change: dict[str, object]) -> Path:
    """Copy of a shard directory in which the json of one sample says something else, with honest hashes."""
    shutil.copytree(shards, copy)
    manifest = load_manifest(copy)
    name = manifest.shards[0].name
    members = []
    with tarfile.open(copy / name) as tar:
        for number, member in enumerate(tar):
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if number == 1:
                data = json.dumps(json.loads(data) | change).encode()
            members.append((member.name, data))
    size, sha256 = write_shard(Store(copy), name, members)
    first = manifest.shards[0].model_copy(update={"num_bytes": size, "sha256": sha256})
    manifest.model_copy(update={"shards": (first, *manifest.shards[1:])}).save(Store(copy))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_name": "x"}, "unexpected keyword argument 'patient_name'"),
        ({"frame": "third"}, "'frame' of its json is not of the type that is allowed"),
    ],
)
def test_verify_knows_what_a_sample_may_say(
    shards: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(verify(rewritten(shards, tmp_path / "copy", change)))


def test_verify_finds_forbidden_strings_in_any_case(shards: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("Quorvath\nMÜLLER\n")
    assert list(verify(shards, load_forbidden(names)))
    planted = rewritten(shards, tmp_path / "copy", {"label": "qUORVATH"})
    with pytest.raises(InputError, match=r"a forbidden string occurs at byte \d+ \(8 bytes\); do not share"):
        list(verify(planted, load_forbidden(names)))
    names.write_text("\n")
    with pytest.raises(InputError, match="no line in it"):
        load_forbidden(names)


def test_verify_finds_letters_in_pixels(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(40, 90, (256, 256)).astype(np.uint8)
    cv2.putText(frame, "QUORVATH 1947", (20, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2, cv2.LINE_AA)
    meta = Meta("set", "clip", 0, (4, 200), "dicom", "tag")
    sample = Sample("k", frame, np.ones((256, 256), dtype=bool), meta)
    size, sha256 = write_shard(Store(tmp_path), "train-00000-000.tar", encode(sample).items())
    shard = ShardInfo(name="train-00000-000.tar", split="train", num_samples=1, num_bytes=size, sha256=sha256)
    empty: dict[str, int] = {}
    Manifest(
        dataset="set", plan="p", key_id="k", pixels="certified", max_frames=1, stride=1, val_share=0, tools={},
        outcomes=empty, certificates=empty, notes=empty, shards=(shard,),
    ).save(Store(tmp_path))  # fmt: skip
    with pytest.raises(InputError, match="sample k seems to show letters"):
        list(verify(tmp_path))
    assert list(verify(tmp_path, text=False))


def test_the_contact_sheet_shows_frames(shards: Path) -> None:
    sheet = cv2.imdecode(np.frombuffer(contact_sheet(shards, 16), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (2 * 128, 8 * 128)
    assert all(tile.std() > 5 for tile in np.split(sheet[:128], 8, axis=1))


def test_stock_webdataset_reads_our_shards(shards: Path) -> None:
    """Keys, order and pixels are those that our reader gives, in every shard."""
    manifest = load_manifest(shards)
    urls = [str(shards / shard.name) for shard in manifest.shards]
    stock = iter(webdataset.WebDataset(urls, shardshuffle=False).decode("l8"))
    for shard in manifest.shards:
        reader = ShardReader(shards / shard.name)
        keys = []
        for index in range(len(reader)):
            ours, theirs = reader[index], next(stock)
            assert theirs["__key__"] == ours.key
            assert np.array_equal(theirs["jpg"] * (theirs["region.png"] > 0), ours.frame)
            keys.append(ours.key)
        assert keys == sorted(keys)
    assert next(stock, None) is None


def test_a_sample_survives_the_round_trip_and_is_black_outside_its_region() -> None:
    rng = np.random.default_rng(0)
    region = np.zeros((40, 50), dtype=bool)
    region[5:30, 8:44] = True
    meta = Meta("set", "clip", 3, (4, 200), "dicom", "tag", mm_per_pixel=(0.1, 0.2))
    sample = Sample("clip-00003", rng.integers(0, 255, (40, 50)).astype(np.uint8), region, meta)
    members = {name.partition(".")[2]: data for name, data in encode(sample).items()}
    back = decode(sample.key, members)
    assert back.meta == meta
    assert np.array_equal(back.region, region)
    assert not back.frame[~region].any()
    assert np.abs(back.frame[8:27, 11:41].astype(int) - sample.frame[8:27, 11:41]).mean() < 6


def test_a_key_with_a_dot_is_refused() -> None:
    sample = Sample(
        "1.2.840", np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), Meta("s", "c", 0, (0, 1), "image", "tag")
    )
    with pytest.raises(ValueError, match=r"key '1.2.840'.*merge samples"):
        encode(sample)
    with pytest.raises(ValueError, match="merge samples"):
        name_members("../../etc/x", sample.meta, b"", b"")


def test_a_tar_is_whole_or_absent(tmp_path: Path) -> None:
    def members() -> Iterator[tuple[str, bytes]]:
        yield "a.jpg", b"first"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_shard(Store(tmp_path), "x.tar", members())
    assert not list(tmp_path.iterdir())


def test_a_sample_without_region_names_key_and_member() -> None:
    with pytest.raises(ValueError, match=r"sample k: no \.region\.png"):
        decode("k", {"jpg": b"", "json": b""})


def test_the_square_keeps_the_aspect_ratio() -> None:
    square = to_square(np.full((30, 60), 9, np.uint8), np.ones((30, 60), bool), 40)
    assert (square[1] > 0).sum() == 40 * 20
    assert not square[:, :10].any()


def test_pseudonyms_are_keyed_and_domains_are_apart() -> None:
    ours = Pseudonyms(KEY)
    assert ours.of("clip", "x") == Pseudonyms(KEY).of("clip", "x")
    assert len({ours.of("clip", "x"), ours.of("source", "x"), Pseudonyms(KEY[::-1]).of("clip", "x")}) == 3
    assert len(ours.of("clip", "x")) == 26


@pytest.mark.parametrize("length", [0, 16, 31])
def test_a_short_key_is_refused_by_whoever_takes_one(length: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^key of pseudonyms: {length} bytes, at least 32 are needed"):
        Pseudonyms(b"k" * length)
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(b"k" * length)
    with pytest.raises(InputError, match=f"key: {length} bytes, at least 32 are needed"):
        load_key(tmp_path / "key")


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key(path) == load_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(InputError, match=r"0644, others can read it; run `chmod 600"):
        load_key(path)


def test_tasks_that_start_at_once_agree_on_the_key_that_they_make(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for place in range(20):
            start = Barrier(16)

            def load(path: Path = tmp_path / str(place), start: Barrier = start) -> bytes:
                start.wait()
                return load_key(path)

            assert len({task.result() for task in [pool.submit(load) for _ in range(16)]}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(20)))


def test_free_text_never_becomes_a_tag() -> None:
    assert allowed_tags("GE Healthcare of Mrs Quorvath", "LIVER") == {"manufacturer": "ge", "body_part": "liver"}
    assert allowed_tags("Quorvath Ltd", "Zelmira's liver") == {"manufacturer": "other"}


@given(name=st.text("abc-_.019", min_size=1, max_size=100), num_bytes=st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name: str, num_bytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = num_bytes, 0o444
    assert _header(name, num_bytes) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_member_that_ustar_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="names of 100 bytes and sizes below 8 GiB"):
        _header("a" * 101, 1)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99), is_ours=st.booleans())
def test_regions_are_read_as_opencv_reads_them(rows: int, columns: int, seed: int, is_ours: bool) -> None:
    region = np.random.default_rng(seed).random((rows, columns)) > 0.5
    png = encode_region(region) if is_ours else cv2.imencode(".png", region * np.uint8(255))[1].tobytes()
    assert (cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) > 0).tolist() == region.tolist()
    read = decode_region(png)
    assert (read is not None) == is_ours
    assert read is None or (read == region).all()
    assert decode_region(png[:-20]) is None or is_ours
    assert decode_region(png[:30]) is None


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_zstd_samples_are_exact(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = rng.random((rows, columns)) > 0.3
    frame = rng.integers(0, 256, region.shape, np.uint8) * region
    meta = Meta("set", "clip", 0, (2, 200), source_kind="image", certificate="tag")
    members = encode(Sample("k", frame, region, meta), "zstd")
    assert list(members) == ["k.json", "k.region.png", "k.zst"]
    read = decode("k", {name.partition(".")[2]: data for name, data in members.items()})
    assert (read.frame == frame).all()
    assert (read.region == region).all()


def test_a_wrong_zstd_member_is_named() -> None:
    region = np.ones((4, 5), bool)
    meta = Meta("set", "clip", 0, (2, 200), source_kind="image", certificate="tag")
    members = encode(Sample("k", region.astype(np.uint8), region, meta), "zstd")
    parts = {name.partition(".")[2]: data for name, data in members.items()}
    with pytest.raises(ValueError, match=r"sample k: \.zst \(3 bytes\) does not decode"):
        decode("k", parts | {"zst": b"abc"})
    with pytest.raises(ValueError, match=r"holds 20 grey levels, the region is \(4, 6\)"):
        decode("k", parts | {"region.png": encode_region(np.ones((4, 6), bool))})


def test_a_zstd_job_has_the_frames_of_a_jpeg_job_without_its_loss(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(labelled.rglob("*.dcm"))[:3]:
        shutil.copy(path, source)
    policy = Policy("set", FrameChoice(max_frames=2), val_share=0.0)
    jpeg = make_shards(source, tmp_path / "jpeg", policy)
    zstd = make_shards(source, tmp_path / "zstd", replace(policy, codec="zstd"))
    assert load_manifest(zstd).codec == "zstd"
    assert sum(count for _, count in verify(zstd)) == load_manifest(jpeg).num_samples() > 0
    for info in load_manifest(zstd).shards:
        for ours, theirs in zip(ShardReader(zstd / info.name), ShardReader(jpeg / info.name), strict=True):
            assert (ours.key, ours.meta) == (theirs.key, theirs.meta)
            assert (ours.region == theirs.region).all()
            assert 0 < np.abs(ours.frame.astype(int) - theirs.frame).mean() < 3


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 6000), min_size=1, max_size=3), min_size=15, max_size=60),
    shard_bytes=st.integers(10_240, 40_000),
)
@example(sizes=[[900, 900, 900]] * 40, shard_bytes=20_480)  # headers and padding are 1.7 times the contents
@example(sizes=[[3000]], shard_bytes=10_240)
@example(sizes=[[30_000], [10], [10]], shard_bytes=10_240)  # the first has a tar of its own
@example(sizes=[], shard_bytes=10_240)
def test_no_tar_is_larger_than_shard_bytes(sizes: list[list[int]], shard_bytes: int) -> None:
    frames = [_Frame(f"{row:03}", "train", row, 0, tuple(lengths)) for row, lengths in enumerate(sizes)]
    parts = list(_parts(frames, shard_bytes))
    assert [frame for part in parts for frame in part] == frames
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            members = [(f"{f.key}.{n}", bytes(length)) for f in part for n, length in enumerate(f.lengths)]
            num_bytes, _ = write_shard(Store(folder), "x.tar", members)
            assert num_bytes <= shard_bytes or len(part) == 1
    assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1
