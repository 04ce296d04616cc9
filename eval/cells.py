"""Finished pieces of a comparison on disk, one JSON file each, named by a hash of everything that determines it.

A piece is written whole or not at all, and is never made twice; so what is made of the pieces alone does not depend on
when a process was killed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sharding.store import Store

Json = dict[str, Any]


class Cells:
    """The pieces in one folder, which is made if it does not exist."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = Store(folder)

    def get(self, key: Mapping[str, Any], make: Callable[[], Json]) -> Json:
        """The piece of a key; `make` runs when it is not there yet.

        Args:
            key: everything that determines the piece, as JSON.
            make: returns the piece; only what JSON holds, NaN included.

        """
        name = f"{key_hash(key)}.json"
        if not self._store.exists(name):
            self._store.write(name, canonical({"key": key, "value": make()}))
        value: Json = json.loads(self._store.read(name))["value"]
        return value


def key_hash(key: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that name a key."""
    return hashlib.sha256(canonical(key)).hexdigest()[:32]


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()
