"""Copies of finished checkpoints in another folder or at a URL, made by one thread behind training's back."""

import json
import logging
import threading
import time
from pathlib import Path

from sharding.recording import InputError
from sharding.store import Store

_RETRY_SECONDS = 30.0
_LAST_TRIES = 3  # when the run ends
_LAST_RETRY_SECONDS = 2.0
_CLOSE_SECONDS = 900.0
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
        self._error: Exception | None = None
        self._changed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="copies")
        self._changed.set()  # what an earlier process left undone
        self._thread.start()

    def refresh(self) -> None:
        """Say that the folder has changed."""
        self._changed.set()

    def close(self) -> None:
        """Wait, a quarter of an hour at most, until everything is copied.

        Raises:
            InputError: it could not be; names place and cause.

        """
        self._closing.set()
        self._changed.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._error = TimeoutError(f"no end after {_CLOSE_SECONDS:.0f} s")
        if self._error is not None:
            raise InputError(
                f"run.copy_to: {self._store.place} lacks {', '.join(self._missing()) or 'nothing, but has old copies'} "
                f"({self._error}); run the same command again when it can be written to"
            ) from self._error

    def _run(self) -> None:
        tries = 0
        while True:
            self._changed.wait()
            self._changed.clear()
            is_closing = self._closing.is_set()
            tries += is_closing
            self._try_once()
            if is_closing and (self._error is None or tries == _LAST_TRIES):
                return
            if self._error is not None:
                time.sleep(_LAST_RETRY_SECONDS) if is_closing else self._closing.wait(_RETRY_SECONDS)
                self._changed.set()

    def _try_once(self) -> None:
        try:
            self._copy_missing()
            self._remove_old()
        except Exception as error:  # every backend has its own; said here, tried again, raised by close
            if self._error is None:
                _log.warning("run.copy_to %s: no copy for now (%s); training goes on", self._store.place, error)
            self._error = error
        else:
            self._error = None

    def _copy_missing(self) -> None:
        while missing := self._missing():
            name, stamp = missing.popitem()  # the newest
            try:
                self._store.upload(self._folder / name, name)
            except FileNotFoundError:
                if (self._folder / name).exists():  # then it is the place that is missing
                    raise
            else:
                self._done[name] = stamp
                self._save()

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
