"""Small jobs for the tests."""

import json
from dataclasses import replace
from pathlib import Path

from sharding.policy import Job, Policy
from sharding.recording import FrameChoice
from sharding.sources.synthetic import SyntheticSpec, generate
from sharding.sources.synthetic_files import write_dicom
from tests.conftest import KEY, make_shards

POLICY = Policy("set", FrameChoice(max_frames=3), val_share=0.0)


def make(source: Path, out: Path, policy: Policy = POLICY, key: bytes = KEY) -> Path:
    return make_shards(source, out, policy, key=key)


def job_of(source: Path | str, out: Path | str, folder: Path, **changes: object) -> Job:
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(KEY)
    return replace(Job(str(source), str(out), POLICY, key), **changes)  # type: ignore[arg-type]


def outcomes_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in (out / "outcomes").glob("*.jsonl") for line in path.read_text().splitlines()]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Everything that a job leaves but its locks."""
    found = (path for path in out.rglob("*") if path.is_file() and path.suffix not in {".lock", ".html"})
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def write_recording(path: Path, seed: int, **changes: object) -> Path:
    spec = SyntheticSpec("fan", seed % 3, num_frames=9, height=160, width=200, seed=seed, patient_id=f"P{seed}")
    write_dicom(generate(replace(spec, **changes)), replace(spec, **changes), path)  # type: ignore[arg-type]
    return path
