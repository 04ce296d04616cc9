"""Run a command and say what it took: `python -m pipeline.timed OUT.json COMMAND...`

Seconds by the wall clock, and CPU seconds of all its processes, also of those that it never waited for (fork servers):
orphans come to this process, which waits for them. CPU time hardly depends on what else a machine has to do.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sharding.recording import InputError

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Took:
    """Seconds of a command.

    Attributes:
        wall: from start to end.
        cpu: of all its processes together.

    """

    wall: float
    cpu: float


def run_timed(command: list[str], what: str, to: Path) -> Took:
    """Run a command in a process of its own.

    Args:
        command: program and arguments.
        what: its name in a message.
        to: file for the numbers.

    Raises:
        InputError: it failed; with the end of what it said.

    """
    to.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "pipeline.timed", str(to), *command]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(f"plan: {what} failed while it was measured: {done.stderr.strip()[-500:]}")
    return Took(**json.loads(to.read_text()))


def main() -> None:
    """Run it, wait for everything that it started, and write the seconds."""
    to, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.perf_counter()
    done = subprocess.run(command, check=False)
    wall = time.perf_counter() - started
    with suppress(ChildProcessError):  # nobody is left
        while True:
            os.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(to).write_text(json.dumps(asdict(Took(wall, usage.ru_utime + usage.ru_stime))))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
