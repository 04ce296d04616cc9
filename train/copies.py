"""Copies of finished checkpoints in another folder or at a URL, made by one thread behind training's back."""

import json
import logging
from pathlib import Path

from sharding.recording import InputError
from sharding.store import Store
from train.shipper import Shipper

_SLOWEST_UPLOAD = 2**20  # bytes per second
_RECORD = "copied.json"
_log = logging.getLogger(__name__)


class Copies:
    """Keeps a place like a folder of checkpoints: new files are copied, newest first; removed ones are removed.

    Whoever falls behind skips what has been removed meanwhile. Only copies that this run made are ever removed:
    `copied.json` in the folder lists them, so that this holds after a restart, too.

    Args:
        folder: of this run's `step-*.safetensors`.
        place: folder or URL, such as `s3://bucket/runs/name`, for this run alone.

    Raises:
        InputError: no such kind of place, or a folder that cannot be made.

    """

    def __init__(self, folder: Path, place: str) -> None:
        self._folder, self._record = folder, Store(folder)
        self._store = _open(place)
        self._done = self._load()
        self._shipper = Shipper(f"run.copy_to {place}", self._mirror)
        self._shipper.start()

    def refresh(self) -> None:
        """Say that the folder has changed."""
        self._shipper.wake()

    def close(self) -> None:
        """Wait until everything is copied.

        Raises:
            InputError: it could not be; names place and cause.

        """
        if not self._shipper.close():
            raise InputError(
                f"run.copy_to: {self._store.place} is not up to date ({self._shipper.trouble or 'no answer'}; without "
                f"{', '.join(self._missing()) or 'nothing, but old ones are left'}); run the same command again when "
                "it can be written to"
            )

    def leave(self) -> None:
        """End without waiting; say what is not copied yet. The next start of the run copies it."""
        if missing := self._missing():
            _log.warning(
                "run.copy_to: %s is without %s; the next start of the run copies it",
                self._store.place, ", ".join(missing),
            )  # fmt: skip

    def _mirror(self) -> None:
        self._copy_missing()
        self._remove_old()

    def _copy_missing(self) -> None:
        while missing := self._missing():
            name, stamp = missing.popitem()  # the newest
            try:
                self._shipper.expects(name, (self._folder / name).stat().st_size / _SLOWEST_UPLOAD)
                self._store.upload(self._folder / name, name)
            except FileNotFoundError:
                if (self._folder / name).exists():  # then it is the place that is missing
                    raise
            else:
                self._done[name] = stamp
                self._save()
                self._shipper.progressed()

    def _remove_old(self) -> None:
        for name in [name for name in self._done if not (self._folder / name).exists()]:
            if self._store.exists(name):
                self._store.delete(name)
            del self._done[name]
            self._save()

    def _missing(self) -> dict[str, int]:
        """Name and time of writing of what is not copied yet, by step."""
        stamps = {}
        for path in sorted(self._folder.glob("step-*.safetensors")):
            try:
                stamps[path.name] = path.stat().st_mtime_ns
            except FileNotFoundError:  # pruned since it was listed
                continue
        return {name: stamp for name, stamp in stamps.items() if self._done.get(name) != stamp}

    def _load(self) -> dict[str, int]:
        content = json.loads(self._record.read(_RECORD)) if self._record.exists(_RECORD) else {}
        return dict(content["stamps"]) if content.get("place") == self._store.place else {}

    def _save(self) -> None:
        self._record.write(_RECORD, json.dumps({"place": self._store.place, "stamps": self._done}).encode())


def _open(place: str) -> Store:
    try:
        store = Store(place)
        if store.is_local:
            store.path().mkdir(parents=True, exist_ok=True)
    except (ValueError, ImportError, OSError) as error:
        raise InputError(f"run.copy_to {place}: {error}; give a folder, or a URL such as s3://bucket/runs") from error
    return store
