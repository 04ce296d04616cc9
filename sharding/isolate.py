"""Files and archives to outcomes, in killable children: each file, and each member of an archive, has exactly one.

Limits are of one file. An archive is unpacked in a child of its own, a member at a time, and each member is converted
as a file would be: what a member does to its decoder is nothing to the unpacking, nor to its neighbours. A file whose
decoder dies or hangs is tried once more in a fresh child, so that an earlier file cannot spoil a later one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from sharding.child import Access, Children, Fault
from sharding.confine import Confinement
from sharding.convert import Converted, EncodedClip, Task, convert, kind_of_source
from sharding.policy import Limits
from sharding.recording import Reason, Rejected
from sharding.sources.archive import MEMBER, Step, unpack

_NUM_TRIES = 2  # of a member whose unpacking fails


class Converter:
    """A child for files, and one that unpacks archives.

    Args:
        limits: of one file or member.
        folder: for files on their way: what the caller puts there, and one member of an archive at a time.
        readable: where the sources are, files or folders; children can read nothing else of the user.

    """

    def __init__(self, limits: Limits, folder: Path, readable: Iterable[Path]) -> None:
        self._unpacked = folder / "unpacked"
        seen = (*readable, folder)
        self._decoders = Children(limits, Access(seen), (Converted, EncodedClip))
        self._unpackers = Children(limits, Access(seen, (self._unpacked,)), (Step,))

    @property
    def pid(self) -> int | None:
        """Process id of the present child that decodes."""
        return self._decoders.pid

    @property
    def unpacker_pid(self) -> int | None:
        """Process id of the present child that unpacks."""
        return self._unpackers.pid

    def __enter__(self) -> "Converter":
        return self

    def __exit__(self, *unused: object) -> None:
        self._decoders.replace()
        self._unpackers.replace()

    def confinement(self) -> Confinement:
        """What the kernel takes from a child.

        Raises:
            Fault: no child starts.

        """
        return self._decoders.confinement()

    def convert(self, task: Task) -> Iterator[Converted]:
        """Convert a file, or the members of an archive, each exactly once, whatever happens to the children.

        Raises:
            OSError: the source has gone or the disk is full.

        """
        try:
            kind = kind_of_source(task.path)
        except Rejected as refusal:
            yield Converted(task.name, refusal.reason)
            return
        if kind == "archive":
            yield from self._convert_members(task)
        else:
            yield self.convert_file(task)

    def convert_file(self, task: Task, descriptor: int | None = None) -> Converted:
        """Convert what is no archive.

        Args:
            task: what to do.
            descriptor: of a file that the child finds at child.DESCRIPTOR, as the path of the task says then.

        Raises:
            OSError: the source has gone.

        """
        try:
            converted = self._decoders.attempt(convert, task, descriptor=descriptor)
        except Fault as fault:
            return Converted(task.name, fault.reason, fault=fault.place)
        except Rejected as refusal:
            return Converted(task.name, refusal.reason)
        if not isinstance(converted, Converted):
            return Converted(task.name, Reason.CRASHED)
        return replace(converted, name=task.name)  # the decoder is not believed in this

    def _convert_members(self, task: Task) -> Iterator[Converted]:
        self._unpacked.mkdir(exist_ok=True)
        unpacking = _Unpacking(task.name)
        while not unpacking.is_over:
            try:
                for step in self._unpackers.run(unpack, task.path, task.name, self._unpacked, unpacking.number):
                    if unpacking.follow(step):
                        yield self._convert_member(task, step)
            except Fault as fault:
                yield from unpacking.fail(fault)
            except Rejected as refusal:
                yield from unpacking.end(refusal.reason)
            else:
                yield from unpacking.end(None if unpacking.has_members else Reason.EMPTY)

    def _convert_member(self, task: Task, step: Step) -> Converted:
        assert step.name is not None
        if step.refusal is not None:
            return Converted(step.name, step.refusal)
        return self.convert_file(replace(task, path=self._unpacked / MEMBER, name=step.name))


class _Unpacking:
    """Where the unpacking of an archive is.

    Attributes:
        number: of the next member without an outcome.
        has_members: one has, or will have, an outcome.
        is_over: nothing more will come.

    """

    def __init__(self, archive: str) -> None:
        self.number, self.has_members, self.is_over = 0, False, False
        self._archive = archive
        self._begun: str | None = None  # name of the member that is being unpacked
        self._num_faults = 0  # since the last outcome

    def follow(self, step: Step) -> bool:
        """Take note of a step; whether a member has its outcome now, or lies there to be converted."""
        self.has_members |= step.name is not None
        if not step.is_done:
            self._begun = step.name
        elif step.number >= self.number:
            self.number, self._begun, self._num_faults = step.number + 1, None, 0
        return step.is_done and step.name is not None

    def fail(self, fault: Fault) -> Iterator[Converted]:
        """Outcome of a child that failed, where it was tried before: of the member in its hands, or of the archive."""
        self._num_faults += 1
        if self._num_faults < _NUM_TRIES and not fault.place:
            return
        yield Converted(self._begun or self._archive, fault.reason, fault=fault.place)
        self.is_over = self._begun is None  # what follows cannot be reached
        self.number, self._begun, self._num_faults = self.number + 1, None, 0

    def end(self, refusal: Reason | None) -> Iterator[Converted]:
        """Outcomes of an archive that ends or breaks off, perhaps within a member."""
        self.is_over = True
        if refusal is not None:
            names = [self._archive] if self._begun is None else [self._begun, self._archive]
            yield from (Converted(name, refusal) for name in names)
