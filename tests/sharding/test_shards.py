"""From files to shards: bytes, outcomes, privacy, restart, verification, reading back."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
import webdataset

from sharding.deidentify import Pseudonyms, allowed_tags, load_key
from sharding.job import Policy, plan, run
from sharding.manifest import load_manifest
from sharding.preprocess import cut_clips, to_square
from sharding.recording import InputError, Reason, Recording, Rejected
from sharding.region import find_regions
from sharding.report import write_report
from sharding.sample import Meta, Sample, decode, encode
from sharding.sources import kind_of, read
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom, write_mp4
from sharding.stream import PositionDataset, ShardReader, StreamConfig, micro_batches
from sharding.verify import verify
from sharding.writer import write_shard
from tests.conftest import KEY

POLICY = Policy("set", max_frames=3, val_share=0.0)


def make(source: Path, out: Path, policy: Policy = POLICY, key: bytes = KEY) -> Path:
    list(run(plan(source, key), out, policy, key, num_workers=1))
    return out


def outcomes_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in (out / "outcomes").glob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, geometry in enumerate(("fan", "linear", "curved")):
        spec = SyntheticSpec(geometry=geometry, tissue=seed, seed=seed, patient_id=f"P{seed}", region_tag=seed != 1)
        write_dicom(generate(spec), spec, folder / f"{seed}.dcm")
    write_mp4(generate(SyntheticSpec(geometry="fan", tissue=0, seed=9)), folder / "clip.mp4")
    (folder / "note.dcm").write_text("a text file")
    return folder


def test_shards_made_twice_are_byte_identical(source: Path, tmp_path: Path) -> None:
    first, second = make(source, tmp_path / "a"), make(source, tmp_path / "b")
    assert load_manifest(first) == load_manifest(second)
    for shard in load_manifest(first).shards:
        assert (first / shard.name).read_bytes() == (second / shard.name).read_bytes()


def test_every_source_has_exactly_one_outcome(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out")
    assert len(outcomes_of(out)) == 5
    assert len({line["source"] for line in outcomes_of(out)}) == 5
    assert load_manifest(out).outcomes == {"accepted": 4, "not_readable_kind": 1}


def test_no_planted_identity_is_in_any_byte(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out")
    write_report(out)
    planted = [b"Quorvath", b"Zelmira", b"19470203", b"note.dcm", b"clip.mp4", b"1.2.826", KEY]
    for path in out.rglob("*"):
        if path.is_file():
            assert not [word for word in planted if word in path.read_bytes() or word.decode() in path.name]


@pytest.mark.parametrize("geometry", ["fan", "curved", "linear"])
@pytest.mark.parametrize("region_tag", [True, False])
def test_no_glyph_pixel_is_kept(geometry: str, region_tag: bool, tmp_path: Path) -> None:
    spec = SyntheticSpec(geometry=geometry, tissue=1, seed=5, region_tag=region_tag)  # type: ignore[arg-type]
    made = generate(spec)
    write_dicom(made, spec, tmp_path / "x.dcm")
    recording = read(tmp_path / "x.dcm", "x")
    marked = replace(recording, frames=np.where(made.glyphs, 255, 0).astype(np.uint8))
    [clip] = cut_clips(recording, 4)
    assert clip.certificate == ("tag" if region_tag else "motion")
    assert clip.region.mean() > 0.4
    [region] = find_regions(recording)
    assert not (marked.frames.max(axis=0)[region.mask] > 0).any()
    assert (region.mask & made.region).sum() > 0.7 * made.region.sum()


def test_a_still_without_region_tag_is_refused_unless_public(tmp_path: Path) -> None:
    spec = SyntheticSpec(geometry="fan", tissue=0, num_frames=1, region_tag=False)
    write_dicom(generate(spec), spec, tmp_path / "x.dcm")
    recording = read(tmp_path / "x.dcm", "x")
    with pytest.raises(Rejected) as refusal:
        cut_clips(recording, 1)
    assert refusal.value.reason == Reason.UNCERTIFIED_STILL
    assert cut_clips(recording, 1, public=True)[0].certificate == "public"


def test_a_frozen_cine_without_region_tag_is_refused() -> None:
    frame = generate(SyntheticSpec(geometry="fan", tissue=0)).frames[0]
    with pytest.raises(Rejected, match="no_motion"):
        cut_clips(Recording(np.repeat(frame[None], 12, axis=0), "video", "p", "c"), 4)


def test_a_killed_job_continues_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole = make(source, tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "manifest.json").unlink()
    next(iter((cut / "outcomes").glob("*.jsonl"))).unlink()
    (cut / ".train-00000-000.tar.77.tmp").write_bytes(b"half")
    make(source, cut)
    assert load_manifest(cut) == load_manifest(whole)
    assert not list(cut.glob(".*.tmp"))
    assert [p.read_bytes() for p in sorted(cut.glob("*.tar"))] == [p.read_bytes() for p in sorted(whole.glob("*.tar"))]


def test_another_plan_or_key_does_not_mix_in(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out")
    with pytest.raises(InputError, match="holds shards of other sources, settings or another key"):
        make(source, out, replace(POLICY, max_frames=2))
    with pytest.raises(InputError, match="another key"):
        make(source, out, key=KEY[::-1])


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


def test_a_patient_is_in_one_split(labelled: Path, tmp_path: Path) -> None:
    out = make(labelled, tmp_path / "out", Policy("set", max_frames=1, val_share=0.4))
    clips = {"train": set(), "val": set()}
    for shard in load_manifest(out).shards:
        reader = ShardReader(out / shard.name)
        clips[shard.split] |= {reader[i].meta.clip for i in range(len(reader))}
    pseudonyms = Pseudonyms(KEY)
    for path in sorted(labelled.glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        share = pseudonyms.number("split", f"{header.PatientID}\0") / 2**64
        assert pseudonyms.of("clip-0", header.SOPInstanceUID) in clips["val" if share < 0.4 else "train"]


def test_stock_webdataset_reads_our_shards(shards: Path) -> None:
    manifest = load_manifest(shards)
    urls = [str(shards / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("l8"))
    assert len(samples) == manifest.num_samples()
    ours = ShardReader(shards / manifest.shards[0].name)[0]
    assert samples[0]["__key__"] == ours.key
    assert np.array_equal(samples[0]["jpg"] * (samples[0]["region.png"] > 0), ours.frame)


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


def test_a_key_with_a_dot_is_refused(tmp_path: Path) -> None:
    sample = Sample(
        "1.2.840", np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), Meta("s", "c", 0, (0, 1), "image", "tag")
    )
    with pytest.raises(ValueError, match=r"key '1.2.840'.*merge samples"):
        write_shard(tmp_path / "x.tar", [sample])
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


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert load_key(path) == load_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(InputError, match=r"0644, others can read it; run `chmod 600"):
        load_key(path)


def test_free_text_never_becomes_a_tag() -> None:
    assert allowed_tags("GE Healthcare of Mrs Quorvath", "LIVER") == {"manufacturer": "ge", "body_part": "liver"}
    assert allowed_tags("Quorvath Ltd", "Zelmira's liver") == {"manufacturer": "other"}


def test_kinds_are_told_by_content(source: Path) -> None:
    assert kind_of(source / "0.dcm") == "dicom"
    assert kind_of(source / "clip.mp4") == "video"
    with pytest.raises(Rejected, match="not_readable_kind"):
        kind_of(source / "note.dcm")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_stream_starts_anywhere_and_splits_over_ranks(shards: Path, num_workers: int) -> None:
    dataset = PositionDataset([shards], canvas=32, seed=1)
    alone = StreamConfig(batch=6, micro_batch=6, canvas=32, seed=1, rank=0, world=1, num_workers=0)
    first = micro_batches(dataset, alone, start=0)
    steps = [next(first) for _ in range(3)]
    later = next(micro_batches(dataset, replace(alone, num_workers=num_workers), start=2))
    assert torch.equal(later.frames, steps[2].frames)
    ranks = [
        next(micro_batches(dataset, replace(alone, micro_batch=2, rank=rank, world=3), start=1)) for rank in range(3)
    ]
    assert torch.equal(torch.cat([batch.regions for batch in ranks]), steps[1].regions)
    assert torch.cat([batch.positions for batch in ranks]).tolist() == list(range(6, 12))


def test_real_dicom_files_each_have_one_outcome_and_leak_no_name(shared_data: Path, tmp_path: Path) -> None:
    out = make(shared_data / "dicom", tmp_path / "out", Policy("real"))
    write_report(out)
    sources = sorted((shared_data / "dicom").iterdir())
    assert len(outcomes_of(out)) == len(sources) == 16
    assert {line["outcome"] for line in outcomes_of(out)} <= {*Reason, "accepted"}
    assert load_manifest(out).outcomes["accepted"] >= 6
    files = [path for path in out.rglob("*") if path.is_file()]
    text = b"".join(path.read_bytes() for path in files if path.suffix in {".json", ".jsonl"})
    text += b"".join(member for path in out.glob("*.tar") for member in text_of(path))
    whole = b"".join(path.read_bytes() for path in files)
    for path in sources:
        name = str(pydicom.dcmread(path, stop_before_pixels=True).PatientName)
        parts = [part.encode() for part in [name, *name.replace(" ", "^").split("^")] if part]
        assert name.encode() not in whole, path.name
        # four letters meet by chance in megabytes of JPEG and base64; in text they would not
        assert not [part for part in parts if len(part) > 2 and part in text], path.name
        assert not [part for part in parts if len(part) > 4 and part in whole], path.name


def text_of(tar: Path) -> Iterator[bytes]:
    """Names and JSON members of a shard."""
    with tarfile.open(tar) as file:
        for member in file:
            yield member.name.encode()
            if member.name.endswith(".json"):
                yield file.extractfile(member).read()  # type: ignore[union-attr]
