"""Units on a Dask cluster. Each runs in a process of its own on its worker, so that no decoder can take a worker down.

OUT, the source, the key file and the listing beside it must be the same paths on every worker.
"""

import pickle
import subprocess
import sys
from collections.abc import Iterator

from distributed import Client, as_completed

from sharding.job import Execute
from sharding.plan import Plan
from sharding.policy import Job
from sharding.recording import InputError
from sharding.unit import Progress, run_unit

_RETRIES = 2  # for workers that go away


def on_dask(address: str) -> Execute:
    """Run units on the workers of a Dask scheduler, for example tcp://scheduler:8786."""

    def execute(job: Job, plan: Plan, units: list[int]) -> Iterator[Progress]:
        try:
            client = Client(address, timeout="10s")  # type: ignore[no-untyped-call]
        except OSError as error:
            raise InputError(f"dask {address}: no scheduler answers there; start one with `dask scheduler`") from error
        with client:
            futures = [
                client.submit(_in_process, pickle.dumps((job, plan, unit)), pure=False, retries=_RETRIES)
                for unit in units
            ]
            for future in as_completed(futures):  # type: ignore[no-untyped-call]
                yield future.result()

    return execute


def _in_process(work: bytes) -> Progress:
    done = subprocess.run([sys.executable, "-m", __name__], input=work, stdout=subprocess.PIPE, check=True)
    result: Progress | OSError | InputError = pickle.loads(done.stdout)
    if isinstance(result, Exception):
        raise result
    return result


def main() -> None:
    """Run the unit that stands on standard input."""
    job, plan, unit = pickle.loads(sys.stdin.buffer.read())
    try:
        result: Progress | OSError | InputError = run_unit(job, plan, unit)
    except (OSError, InputError) as error:
        result = error
    sys.stdout.buffer.write(pickle.dumps(result))


if __name__ == "__main__":
    main()
