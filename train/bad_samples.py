"""How many samples of an epoch cannot be read: counted over all ranks and restarts, and compared with a limit."""

from collections.abc import Iterable

import torch
from torch import distributed

from sharding.recording import InputError
from sharding.stream import CAUSES, Batch


class BadSamples:
    """Bad samples of the epoch that a run is in. An epoch holds each of its samples once, so each bad one counts once.

    A sample that a weight repeats within an epoch counts as often as it is drawn, above and below the line.

    Args:
        num_samples: of an epoch.
        max_fraction: of them that may be bad.
        what: they are, with a place for the number of the epoch.

    Attributes:
        state: (1 + causes,) int64, the epoch and its bad samples by cause, over all ranks, as of the last `settle`. A
            checkpoint keeps it, so that an interrupted run ends where an undisturbed one does.

    """

    def __init__(self, num_samples: int, max_fraction: float, what: str = "samples of epoch {}") -> None:
        self._num_samples, self._max_fraction, self._what = num_samples, max_fraction, what
        self.state = torch.zeros(1 + len(CAUSES), dtype=torch.int64)
        self._found = torch.zeros((0, 2), dtype=torch.int64)  # position and cause of this rank's, since `settle`
        self._first = ""

    def add(self, batches: Iterable[Batch]) -> None:
        """Note what this rank has read."""
        for batch in batches:
            if len(batch.bad):
                self._found = torch.cat([self._found, batch.bad])
                self._first = self._first or batch.trouble

    def settle(self, num_drawn: int, device: torch.device) -> dict[str, int]:
        """Add up over all ranks, which must all call it.

        Args:
            num_drawn: samples since the start of the run, over all epochs: the next one stands at this position.
            device: for the sum.

        Returns:
            bad samples of the epoch of the last sample, by the name of their metric.

        Raises:
            InputError: an epoch that ended since the last call, or this one, has more than it may; says where the
                first one is and what is wrong with it.

        """
        begun = int(self.state[0])
        last = max((num_drawn - 1) // self._num_samples, begun)
        counts = torch.zeros((last - begun + 1, len(CAUSES)), dtype=torch.int64)
        epochs = torch.clamp(self._found[:, 0] // self._num_samples - begun, min=0)
        counts.index_put_((epochs, self._found[:, 1]), torch.ones((), dtype=torch.int64), accumulate=True)
        counts = counts.to(device)
        distributed.all_reduce(counts)
        counts = counts.cpu()
        counts[0] += self.state[1:]
        for number, of_epoch in enumerate(counts.tolist()):
            if sum(of_epoch) > self._max_fraction * self._num_samples:
                raise InputError(self._sentence(begun + number, of_epoch))
        self._found, self._first = self._found[:0], ""
        self.state[0], self.state[1:] = last, counts[-1]
        return {f"data/bad_{cause}": int(number) for cause, number in zip(CAUSES, counts[-1], strict=True)}

    def _sentence(self, epoch: int, counts: list[int]) -> str:
        firsts = [""] * distributed.get_world_size()
        distributed.all_gather_object(firsts, self._first)
        known = ", ".join(f"{number} {cause}" for cause, number in zip(CAUSES, counts, strict=True) if number)
        first = next(filter(None, firsts), "")
        allowed = int(self._max_fraction * self._num_samples)
        return (
            f"data: {sum(counts)} {self._what.format(epoch + 1)} cannot be read so far ({known}); "
            f"data.max_bad_fraction {self._max_fraction:g} of its {self._num_samples} allows {allowed}"
            + (f"; one of them: {first}" if first else "")
        )
