"""What decides the bytes of a shard directory, besides the sources: policy, limits, and where things are."""

import hashlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from sharding.preprocess import Pixels
from sharding.profiles import Profile
from sharding.recording import FrameChoice, InputError
from sharding.sample import KEY, Codec
from sharding.text import CALIBRATION, WEIGHTS

_TOOLS = ("us-jepa", "pydicom", "imagecodecs", "opencv-python-headless", "decord", "numpy")


@dataclass(frozen=True)
class Policy:
    """Settings of a shard directory; another policy is another directory.

    Attributes:
        dataset: name written into every sample, [a-z0-9_-]+.
        choice: frames kept per clip.
        val_share: share of patients that go to the val split.
        pixels: `certified`, `public` or `as_is`; see preprocess.cut_clips.
        profiles: device profiles that a site has signed.
        shard_bytes: most bytes of a tar, headers and padding included; one sample that is larger has a tar of its own.
        codec: `jpeg` (quality 95), or `zstd`: lossless, larger, for hosts short of cores.

    """

    dataset: str
    choice: FrameChoice = field(default_factory=FrameChoice)
    val_share: float = 0.05
    pixels: Pixels = "certified"
    profiles: tuple[Profile, ...] = ()
    shard_bytes: int = 256 << 20
    codec: Codec = "jpeg"

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.dataset):
            raise InputError(f"dataset name {self.dataset!r}: only [a-z0-9_-] is allowed")
        if self.choice.max_frames < 1 or self.choice.stride < 1:
            given = f"max_frames is {self.choice.max_frames} and stride {self.choice.stride}"
            raise InputError(f"{given}; both must be at least 1")
        if not 0 <= self.val_share < 1:
            raise InputError(f"val_share is {self.val_share}; it must be at least 0 and below 1")

    def hash(self) -> str:
        """Identity of policy and decoders: either changes pixels."""
        return hashlib.sha256(repr((sorted(asdict(self).items()), tools())).encode()).hexdigest()


def tools() -> dict[str, str]:
    """Versions of what decodes, encodes and looks for letters: which pixels are stored depends on them."""
    weights = hashlib.sha256(WEIGHTS.read_bytes() + CALIBRATION.read_bytes()).hexdigest()
    return {name: version(name) for name in _TOOLS} | {"text detector": weights[:12]}


@dataclass(frozen=True)
class Limits:
    """What decoding one file may cost before its child process is killed.

    Attributes:
        seconds: wall clock.
        memory: bytes of address space.

    """

    seconds: float = 120
    memory: int = 4 << 30


@dataclass(frozen=True)
class Job:
    """A whole sharding job, small enough to be sent to any worker: files are named, not carried.

    Attributes:
        source: folder, file or URL.
        out: folder or URL.
        policy: what decides the bytes.
        key_file: secret of the pseudonyms; beside it the listing of the sources is kept, which names patients.
        labels: table of path, label, group, or None.
        limits: of a decoder.

    """

    source: str
    out: str
    policy: Policy
    key_file: Path
    labels: Path | None = None
    limits: Limits = field(default_factory=Limits)
