"""A thread that does one thing again and again: send what waits on disk. It never stops the one who has work to do."""

import logging
import threading
import time
from collections.abc import Callable

from sharding.recording import InputError

_RETRY_SECONDS = 5.0
_LAST_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 30.0  # without progress
_log = logging.getLogger(__name__)


class Shipper:
    """Calls `send` whenever there is something new, and again until it succeeds.

    Args:
        name: of the receiver, for messages.
        send: sends everything that waits; calls `progressed` and `expects` on the way. What it raises is said once per
            outage.

    """

    def __init__(self, name: str, send: Callable[[], None]) -> None:
        self._name, self._send, self._is_done = name, send, False
        self.trouble = ""  # of the last try; empty: all is well
        self._wake, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._expected: set[str] = set()
        self._deadline = 0.0  # of close

    def start(self) -> None:
        """Begin with what an earlier process could not send."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """Say that something waits."""
        self._wake.set()

    def progressed(self) -> None:
        """Say that something arrived."""
        self._deadline = time.monotonic() + _CLOSE_SECONDS

    def expects(self, what: str, seconds: float) -> None:
        """Say that something begins that may take so long beyond the usual; repeated tries count once."""
        if what not in self._expected:
            self._expected.add(what)
            self._deadline = time.monotonic() + _CLOSE_SECONDS + seconds

    def close(self) -> bool:
        """Send the rest; give up when nothing arrives for 30 s. Whether all of it was sent."""
        self._expected.clear()  # an outage before does not count
        self._deadline = max(self._deadline, time.monotonic() + _CLOSE_SECONDS)
        self._closing.set()
        self._wake.set()
        while self._thread.is_alive() and time.monotonic() < self._deadline:
            self._thread.join(0.1)
        self._given_up.set()
        return self._is_done

    def _run(self) -> None:
        while not self._given_up.is_set():
            self._wake.wait()
            self._wake.clear()
            is_last = self._closing.is_set()
            if not self._succeeds():
                time.sleep(_LAST_RETRY_SECONDS) if is_last else self._closing.wait(_RETRY_SECONDS)
                self._wake.set()
            elif is_last:
                self._is_done = True
                return

    def _succeeds(self) -> bool:
        try:
            self._send()
        except Exception as error:  # every receiver has its own; none may end training, all are said and tried again
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
            cause = str(error) if isinstance(error, InputError) else cause  # a sentence already, with what to type
            if not self.trouble:
                _log.warning("%s fails (%s); training goes on, and it is tried again", self._name, cause)
            self.trouble = cause
            return False
        self.trouble = ""
        return True
