"""Shards to batches, in the order of order.py; nothing else decides what a batch holds.

Workers hand over uint8; crop, flip and normalisation happen later, on the device. B is the micro batch, S the
side of the canvas in pixels.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from sharding.cache import ShardCache
from sharding.handover import Outbox, SharedPixels
from sharding.open_files import explain_reading, is_exhausted, max_open
from sharding.order import Mixture, Order
from sharding.preprocess import stretch, to_square
from sharding.reader import BadSampleError, ShardReader, open_shard
from sharding.recording import InputError
from sharding.sample import Sample
from sharding.shard import Shard
from sharding.shard_set import ShardSet

CAUSES = ("missing", "undecodable")  # of a bad sample


class Batch(NamedTuple):
    """One micro batch on the host.

    Attributes:
        pixels: (B, S, S + ceil(S / 8)) uint8; see split_pixels.
        positions: (B,) int64 global sample positions, -1 for a row of padding and for a bad sample: both have weight 0.
        datasets: (B,) int64 index of the data set; 0 where the position is -1.
        key_hashes: (B,) int64 below 2^32, of position and key; 0 where the position is -1.
        bad: (bad samples, 2) int64, position and index in CAUSES of each.
        trouble: where the first of them is and what is wrong with it; empty where there is none.

    """

    pixels: torch.Tensor
    positions: torch.Tensor
    datasets: torch.Tensor
    key_hashes: torch.Tensor
    bad: torch.Tensor
    trouble: str

    @property
    def num_bad(self) -> torch.Tensor:
        """(2,) int64 bad samples by cause, in the order of CAUSES."""
        return torch.bincount(self.bad[:, 1], minlength=len(CAUSES))


def split_pixels(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and regions of a batch's pixels, on whatever device they are.

    Args:
        pixels: (B, S, S + ceil(S / 8)) uint8: each row of grey levels is followed by its row of the region, one bit a
            pixel. Half the bytes of two pictures: workers hand them over through shared memory, whose pages cost more
            than the bits.

    Returns:
        frames (B, 1, S, S) uint8, and regions (B, 1, S, S) uint8, 0 or 255.

    """
    side = pixels.shape[1]
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=pixels.device)
    bits = (pixels[:, :, side:, None] >> shifts) & 1
    return pixels[:, None, :, :side], bits.flatten(2)[:, None, :, :side] * 255


class Packed(NamedTuple):
    """A batch on its way from a worker: the small parts go with the message."""

    pixels: torch.Tensor | SharedPixels  # arrive as a tensor
    positions: np.ndarray
    datasets: np.ndarray
    key_hashes: np.ndarray
    bad: np.ndarray
    trouble: str

    def unpack(self) -> Batch:
        """The batch."""
        assert isinstance(self.pixels, torch.Tensor)
        parts = (self.positions, self.datasets, self.key_hashes, self.bad)
        positions, datasets, hashes, bad = map(torch.from_numpy, parts)
        return Batch(self.pixels, positions, datasets, hashes, bad, self.trouble)


class PositionDataset(Dataset[Packed]):
    """Global sample positions -> what stands there, squared to the canvas.

    Args:
        sets: data sets, in the order of the mixture's weights.
        mixture: order of the samples.
        canvas: side S in pixels.
        cache: of remote shards.

    """

    def __init__(self, sets: Sequence[ShardSet], mixture: Mixture, canvas: int, cache: ShardCache) -> None:
        self._shards = [found.shards for found in sets]
        self._canvas, self._cache = canvas, cache
        self._mixture = mixture
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._outbox = Outbox()
        self.order = Order(mixture)

    def __getstate__(self) -> dict[str, object]:
        return {"_shards": self._shards, "_canvas": self._canvas, "_cache": self._cache, "_mixture": self._mixture}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._readers, self._outbox, self.order = OrderedDict(), Outbox(), Order(self._mixture)

    @property
    def batch_size(self) -> int:
        """Samples of a step over all ranks."""
        return self._mixture.batch

    @property
    def has_remote(self) -> bool:
        """Whether any shard has to be fetched."""
        return any(shards and shards[0].is_remote for shards in self._shards)

    @property
    def cache(self) -> ShardCache:
        """Of remote shards."""
        return self._cache

    def samples(self, positions: np.ndarray) -> Iterator[tuple[int, Sample | BadSampleError]]:
        """Row of each position (P,) and the sample there, shard by shard.

        Raises:
            InputError: a shard cannot be read at all.

        """
        for row, reader, index in self.located(positions):
            try:
                yield row, reader[index]
            except BadSampleError as bad:
                yield row, bad

    def located(self, positions: np.ndarray) -> Iterator[tuple[int, ShardReader, int]]:
        """Row of each position (P,), the reader of its shard, and its index there; shard by shard.

        Raises:
            InputError: a shard cannot be read at all.

        """
        places = self.order.at(positions)
        self._let_go()
        rows = np.lexsort((places.indices, places.shards, places.datasets))
        datasets, shards, indices = (column[rows] for column in places)
        begins = np.flatnonzero(np.diff(datasets, prepend=-1) | np.diff(shards, prepend=-1)).tolist()
        for begin, end in pairwise([*begins, len(rows)]):
            reader = self._reader(int(datasets[begin]), int(shards[begin]))
            yield from zip(rows[begin:end].tolist(), repeat(reader), indices[begin:end].tolist())

    def shards_of(self, positions: np.ndarray) -> list[Shard]:
        """Shards that hold the samples at positions (P,), each once, in the order of first need."""
        places = self.order.at(positions)
        pairs = zip(places.datasets.tolist(), places.shards.tolist(), strict=True)
        return [self._shards[dataset][shard] for dataset, shard in dict.fromkeys(pairs)]

    def __getitems__(self, positions: Sequence[int]) -> Packed | InputError:
        """A micro batch; an error travels as it is, because a worker would wrap it in its traceback."""
        try:
            return self._pack(np.array(positions))
        except InputError as error:
            return error

    def batch(self, positions: np.ndarray) -> Batch:
        """What stands at positions (B,) int64; -1 is padding.

        Raises:
            InputError: a shard cannot be read at all.

        """
        return self._pack(positions).unpack()

    def _pack(self, positions: np.ndarray) -> Packed:
        side = self._canvas
        shape = (len(positions), side, side + -(-side // 8))
        shared = None if get_worker_info() is None else self._outbox.zeros(*shape)
        pixels = torch.zeros(shape, dtype=torch.uint8) if shared is None else shared.pixels
        kept, datasets, hashes = np.full_like(positions, -1), np.zeros_like(positions), np.zeros_like(positions)
        bad: list[tuple[int, int]] = []
        trouble = ""
        rows = np.flatnonzero(positions >= 0)
        datasets[rows] = self.order.at(positions[rows]).datasets
        for place, sample in self.samples(positions[rows]):
            row = rows[place]
            if isinstance(sample, BadSampleError):
                bad.append((int(positions[row]), CAUSES.index(sample.cause)))
                datasets[row], trouble = 0, trouble or str(sample)
                continue
            kept[row], hashes[row] = positions[row], _hash(int(positions[row]), sample.key)
            frame = stretch(sample.frame, sample.region, sample.meta.percentiles)
            square = to_square(frame, sample.region, side)
            of_row = pixels[row].numpy()
            of_row[:, :side], of_row[:, side:] = square[0], np.packbits(square[1], axis=-1)
        return Packed(shared or pixels, kept, datasets, hashes, np.array(bad, np.int64).reshape(-1, 2), trouble)

    def _reader(self, dataset: int, number: int) -> ShardReader:
        reader = self._readers.get((dataset, number))
        if reader is not None:
            self._readers.move_to_end((dataset, number))
            return reader
        shard = self._shards[dataset][number]
        self._close_oldest(max_open() - 1)
        try:
            reader = self._open(shard)
        except OSError as error:
            raise InputError(f"shard {shard.place}: {explain_reading(error)}") from error
        self._readers[dataset, number] = reader
        return reader

    def _open(self, shard: Shard) -> ShardReader:
        """Open a shard; where no more files may be open, others are closed for it."""
        while True:
            try:
                return open_shard(shard, self._cache)
            except OSError as error:
                if not is_exhausted(error) or not self._readers:
                    raise
            self._close_oldest(len(self._readers) // 2)

    def _close_oldest(self, num_kept: int) -> None:
        while len(self._readers) > num_kept:
            self._readers.popitem(last=False)[1].close()

    def _let_go(self) -> None:
        """Close what left the cache: its bytes stay on disk while it is open."""
        if self.has_remote:
            for place in [place for place, reader in self._readers.items() if reader.is_deleted()]:
                self._readers.pop(place).close()


def _hash(position: int, key: str) -> int:
    data = f"{position} {key}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest())
