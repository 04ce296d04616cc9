"""Vectors of frames and clips: whose they are, that nothing is lost to a kill, and that no name gets out."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pyarrow import parquet

from deploy.embed import Embedding, _embed_shard, embed
from deploy.embedder import Embedder
from deploy.index import nearest, open_table
from pipeline.embed import Raw, write_table
from sharding.policy import Policy
from sharding.preprocess import stretch, to_square
from sharding.reader import ShardReader
from sharding.recording import FrameChoice, InputError
from tests.cases.odd_names import LATIN, still
from tests.conftest import ROOT, make_shards
from train.vit import load_encoder, new_student, save_encoder

SIZE = 64


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    save_encoder(new_student("vit_tiny_patch16_224", SIZE, {"depth": 2}), folder, {"objective": "salt"})
    return folder


@pytest.fixture(scope="module")
def many_shards(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled recordings in many small tars."""
    policy = Policy("many", FrameChoice(max_frames=4), val_share=0.2, shard_bytes=100_000)
    return make_shards(labelled, tmp_path_factory.mktemp("many"), policy)


@pytest.fixture(scope="module")
def table(encoder: Path, many_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table") / "frames.parquet"
    embed(Embedding(str(encoder)), str(many_shards), out)
    return out


def test_every_frame_has_the_vector_of_the_encoder(encoder: Path, many_shards: Path, table: Path) -> None:
    rows = {row["key"]: row for row in parquet.read_table(table).to_pylist()}
    embedder = Embedder(load_encoder(encoder))
    num_samples = 0
    for tar in sorted(many_shards.glob("*.tar")):
        with ShardReader(tar) as reader:
            for sample in reader:
                frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
                square = torch.from_numpy(to_square(frame, sample.region, SIZE))[:, None, None] / 255
                wanted = embedder(square[0], square[1])[0][0].numpy()
                row = rows[sample.key]
                assert np.abs(np.array(row["embedding"], np.float32) - wanted).max() < 5e-3
                assert (row["clip"], row["frame"], row["patient"]) == (
                    sample.meta.clip, sample.meta.frame, sample.meta.patient,
                )  # fmt: skip
                num_samples += 1
    assert num_samples == len(rows) > 50


def test_a_clip_is_the_mean_of_its_frames(table: Path) -> None:
    frames = parquet.read_table(table).to_pylist()
    clips = parquet.read_table(table.with_suffix(".clips.parquet")).to_pylist()
    assert Counter(row["clip"] for row in frames) == {row["clip"]: row["num_frames"] for row in clips}
    for clip in clips:
        some = [np.array(row["embedding"], np.float32) for row in frames if row["clip"] == clip["clip"]]
        assert np.abs(np.mean(some, axis=0) - np.array(clip["embedding"], np.float32)).max() < 2e-3


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    encoder: Path, many_shards: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames.parquet"
    command = [sys.executable, "-m", "pipeline.cli", "embed", str(encoder), str(many_shards), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    parts = tmp_path / ".frames.parquet.parts"
    while len(list(parts.glob("*.parquet"))) < 2:
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not out.exists()
    kept, made = set(parts.glob("*.parquet")), list[Path]()
    monkeypatch.setattr("deploy.embed._embed_shard", lambda *given: (made.append(given[2]), _embed_shard(*given)))
    embed(Embedding(str(encoder)), str(many_shards), out)
    assert kept
    assert not kept & set(made)  # what was finished is not embedded again
    assert len(kept) + len(made) == len(list(many_shards.glob("*.tar")))
    assert not parts.exists()
    assert out.read_bytes() == table.read_bytes()
    clips = ".clips.parquet"
    assert out.with_suffix(clips).read_bytes() == table.with_suffix(clips).read_bytes()


def test_the_most_alike_of_a_frame_is_itself(table: Path) -> None:
    frames = parquet.read_table(table).to_pylist()
    for row in frames[::20]:
        (cosine, first), (second, _) = nearest(table, np.array(row["embedding"], np.float32), 2)
        assert first["key"] == row["key"]
        assert cosine == pytest.approx(1, abs=1e-5)
        assert second <= cosine


def test_a_table_of_another_encoder_is_refused(table: Path) -> None:
    with pytest.raises(InputError, match=r"vectors of 192, the query has 384; use its encoder"):
        nearest(table, np.zeros(384), 1)


def test_only_parquet_is_written(encoder: Path, many_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out.csv: the table is Parquet"):
        embed(Embedding(str(encoder)), str(many_shards), tmp_path / "out.csv")


def test_a_damaged_shard_is_named(encoder: Path, labelled: Path, tmp_path: Path) -> None:
    shards = make_shards(labelled, tmp_path / "shards", Policy("tiny", FrameChoice(max_frames=1)))
    tar = next(iter(sorted(shards.glob("train*.tar"))))
    data = bytearray(tar.read_bytes())
    at = data.index(b"\xff\xd8\xff")
    data[at : at + 64] = bytes(64)
    tar.write_bytes(data)
    with pytest.raises(InputError, match=rf"{tar.name}: .*does not decode.*us-jepa verify"):
        embed(Embedding(str(encoder)), str(shards), tmp_path / "out.parquet")


def test_real_recordings_become_rows_without_a_name(encoder: Path, shared_data: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "frames.parquet", tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(b"0123456789abcdef0123456789abcdef")
    folder = shared_data / "dicom"
    arguments = ["embed", str(encoder), str(folder), str(out), "--key-file", str(key), "--max-frames", "4"]
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = parquet.read_table(out).to_pylist()
    assert rows
    assert {row["dataset"] for row in rows} == {"embed"}
    written = _text_of(out) + _text_of(out.with_suffix(".clips.parquet"))
    identifiers = {word for path in folder.glob("*.dcm") for word in _identifiers(path)}
    assert len(identifiers) > 20
    assert not [word for word in identifiers - {"patient"} if word in written]  # a column, and a made-up name
    assert not list(tmp_path.glob(".frames*"))


def _text_of(table: Path) -> str:
    """Every cell but the vectors, decompressed, and what the file says of itself."""
    read = parquet.read_table(table)
    cells = [str(value) for row in read.drop_columns("embedding").to_pylist() for value in row.values()]
    return " ".join([*cells, str(read.schema.metadata), str(parquet.read_metadata(table).metadata)]).lower()


def _identifiers(path: Path) -> set[str]:
    """The long words of a recording's identifying tags, and its file name."""
    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    names = ("PatientName", "PatientID", "InstitutionName", "ReferringPhysicianName", "PatientBirthDate", "StudyDate")
    words = re.split(r"[\W_]+", " ".join(str(header.get(name, "")) for name in (*names, "AccessionNumber", "StudyID")))
    return {word.lower() for word in (*words, path.stem) if len(word) >= 5}


def test_scans_and_tables_may_have_names_that_are_no_utf8(encoder: Path, tmp_path: Path) -> None:
    source = tmp_path / LATIN
    source.mkdir()
    (source / f"{LATIN}.png").write_bytes(still(0))
    (source / "plain.png").write_bytes(still(1))
    out = tmp_path / f"{LATIN}.parquet"
    write_table(Embedding(str(encoder)), Raw(str(source), 1, "public", tmp_path / "key"), out)
    assert open_table(out).num_rows == 2
