"""The manifest of a shard directory. It is written last: its presence means that the directory is complete."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sharding.preprocess import Pixels
from sharding.recording import InputError
from sharding.sample import Codec
from sharding.store import Store

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
        codec: of the frames: `jpeg` or `zstd`.
        dataset: name, also in every sample.
        plan: keyed hash of sources and settings; the same plan makes the same bytes.
        key_id: pseudonym of the key, to tell whether two directories share their pseudonyms.
        pixels: `certified`, or `public` or `as_is` when the user vouched for the pixels.
        max_frames: frames kept per clip at most.
        stride: only every stride-th frame was a candidate.
        val_share: share of patients in the val split.
        tools: versions of what decoded and encoded.
        outcomes: number of sources by outcome.
        certificates: number of clips by certificate.
        notes: number of clips or frames that were changed (truncated, inpainted, dropped), of sources whose patient is
            unknown, of identifiers that cover suspiciously many studies, and of links that were not followed.
        shards: in order of name.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[2] = 2
    codec: Codec = "jpeg"
    dataset: str
    plan: str
    key_id: str
    pixels: Pixels
    max_frames: int
    stride: int
    val_share: float
    tools: dict[str, str]
    outcomes: dict[str, int]
    certificates: dict[str, int]
    notes: dict[str, int]
    shards: tuple[ShardInfo, ...]

    def num_samples(self, split: str | None = None) -> int:
        """Samples in all, or in one split."""
        return sum(shard.num_samples for shard in self.shards if split in {None, shard.split})

    def save(self, out: Store) -> None:
        """Write manifest.json whole or not at all."""
        out.write(MANIFEST, (self.model_dump_json(indent=1) + "\n").encode())

    def sha256(self) -> str:
        """Identity of the data: hash over the shards' hashes."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def load_manifest(directory: Path | str) -> Manifest:
    """Read the manifest of a finished shard directory, local or remote.

    Raises:
        InputError: no such directory, no manifest yet, or not one of ours.

    """
    store = Store(directory)
    if not store.exists():
        raise InputError(f"shards: {directory} is not a folder; make it with `make shards SRC=... OUT={directory}`")
    if not store.exists(MANIFEST):
        raise InputError(f"shards: {directory} has no {MANIFEST}, so it is not finished; run `us-jepa shards` again")
    try:
        return Manifest.model_validate_json(store.read(MANIFEST))
    except ValidationError as error:
        raise InputError(
            f"{store / MANIFEST}: not a manifest of this version ({error.error_count()} errors)"
        ) from error
