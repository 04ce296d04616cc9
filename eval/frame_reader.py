"""Labelled recordings decoded in a killable, confined child: one that kills its decoder costs itself alone."""

from collections.abc import Iterable
from pathlib import Path

from eval.labelled_files import Entry, LabelledFrame, read_frames
from sharding.child import Access, Children, Fault
from sharding.policy import Limits
from sharding.recording import FrameChoice, Reason


class FrameReader:
    """A child that reads the files of a set, and nothing else of the user.

    Args:
        entries: all that will be read.
        limits: of one recording.

    """

    def __init__(self, entries: Iterable[Entry], limits: Limits | None = None) -> None:
        self._children = Children(limits or Limits(), Access(_folders(entries)), (LabelledFrame,))

    @property
    def pid(self) -> int | None:
        """Process id of the present child."""
        return self._children.pid

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *unused: object) -> None:
        self._children.replace()

    def read(self, entry: Entry, choice: FrameChoice, size: int) -> list[LabelledFrame]:
        """See labelled_files.read_frames.

        Raises:
            Rejected: it cannot be read.
            Fault: its decoder died, twice.
            InputError: the mask of classes has another shape than the picture.

        """
        frames = self._children.attempt(read_frames, entry, choice, size)
        if not isinstance(frames, list):
            raise Fault(Reason.CRASHED)
        return frames


def _folders(entries: Iterable[Entry]) -> tuple[Path, ...]:
    """Where the files of a set lie, links followed; of nested folders the outer one."""
    files = {path for entry in entries for path in (entry.path, entry.scan, entry.target) if path is not None}
    found: list[Path] = []
    for folder in sorted({path.resolve().parent for path in files}):
        if not found or not folder.is_relative_to(found[-1]):
            found.append(folder)
    return tuple(found)
