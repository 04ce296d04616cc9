"""One tar of a data set, wherever it lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One tar.

    Attributes:
        place: local path, URL, or `pipe:COMMAND`.
        num_samples: in it.
        num_bytes: of it, 0 when not known yet.
        sha256: of its bytes, empty when not known.

    """

    place: str
    num_samples: int
    num_bytes: int
    sha256: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return "://" in self.place or self.place.startswith("pipe:")
