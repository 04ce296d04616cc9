"""The manifest of a shard directory. It is written last: its presence means that the directory is complete."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sharding.recording import InputError
from sharding.writer import write_atomically

MANIFEST = "manifest.json"
Split = Literal["train", "val"]


class ShardInfo(BaseModel):
    """One tar: its name, split, number of samples and bytes, and content hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    split: Split
    num_samples: int
    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """Contents of a shard directory.

    Attributes:
        dataset: name, also in every sample.
        plan: keyed hash of sources and settings; the same plan makes the same bytes.
        public: true when the user vouched for pixels that have no certificate.
        outcomes: number of sources by outcome.
        shards: in order of name.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    codec: Literal["jpeg"] = "jpeg"
    dataset: str
    plan: str
    public: bool
    outcomes: dict[str, int]
    shards: tuple[ShardInfo, ...]

    def num_samples(self, split: str | None = None) -> int:
        """Samples in all, or in one split."""
        return sum(shard.num_samples for shard in self.shards if split in {None, shard.split})

    def save(self, directory: Path) -> None:
        """Write manifest.json whole or not at all."""
        write_atomically(directory / MANIFEST, (self.model_dump_json(indent=1) + "\n").encode())

    def sha256(self) -> str:
        """Identity of the data: hash over the shards' hashes."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a finished shard directory.

    Raises:
        InputError: no such directory, no manifest yet, or not one of ours.

    """
    if not directory.is_dir():
        raise InputError(f"shards: {directory} is not a folder; make it with `make shards SRC=... OUT={directory}`")
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"shards: {directory} has no {MANIFEST}, so it is not finished; run `us-jepa shards` again")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: not a manifest of this version ({error.error_count()} errors)") from error


def sha256_of(path: Path) -> str:
    """Content hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
