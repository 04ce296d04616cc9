"""Tables of `us-jepa embed`, searched for the frames that are most like a query."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from sharding.names import path_for_decoders
from sharding.recording import InputError

_TINY = np.finfo(np.float32).tiny


class Index:
    """A table in memory, to be searched many times.

    Args:
        table: what `embed` wrote, by the same encoder as the queries.

    Attributes:
        width: D.

    Raises:
        InputError: no such table, or no table of `embed`.

    """

    def __init__(self, table: Path) -> None:
        if not table.is_file():
            raise InputError(f"index {table}: no such file; `us-jepa embed` writes one")
        try:
            frames = open_table(table)
            vectors = vectors_in(frames)
        except (pa.ArrowInvalid, KeyError) as error:
            raise InputError(f"index {table}: no table of `us-jepa embed` ({type(error).__name__})") from error
        self._table, self._facts = table, frames.drop_columns("embedding")
        self._directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY)
        self.width = vectors.shape[1]

    def nearest(self, query: np.ndarray, num: int) -> list[tuple[float, dict[str, object]]]:
        """The frames most like a query (D,) float, by cosine.

        Returns:
            (cosine, facts of the frame), most alike first.

        Raises:
            InputError: the table's vectors have another length.

        """
        if self.width != len(query):
            raise InputError(
                f"index {self._table}: vectors of {self.width}, the query has {len(query)}; use its encoder"
            )
        cosines = self._directions @ query.astype(np.float32) / np.maximum(np.linalg.norm(query), _TINY)
        best = np.argsort(-cosines, kind="stable")[:num]
        return list(zip(cosines[best].tolist(), self._facts.take(best).to_pylist(), strict=True))


def nearest(table: Path, query: np.ndarray, num: int) -> list[tuple[float, dict[str, object]]]:
    """The frames of a table most like a query, by cosine; see Index.

    Raises:
        InputError: as Index.

    """
    return Index(table).nearest(query, num)


def open_table(path: Path) -> pa.Table:
    """A Parquet file of any name; pyarrow takes no path that is no UTF-8."""
    with path_for_decoders(path) as place:
        return parquet.read_table(place)


def vectors_in(table: pa.Table) -> np.ndarray:
    """(n, D) float32 of the column `embedding`."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1).astype(np.float32)
