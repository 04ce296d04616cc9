"""One rank of the group that `us-jepa doctor --ranks N` tries: joins as training does, adds up, and passes a word on.

Run by pipeline/ranks.py as `python -m pipeline.rank`, with what a launcher sets in the environment. It prints the
backends on rank 0. Exit code 2: a sentence on stderr; 3: another rank is gone.
"""

import os
import sys

import torch
from torch import distributed

from sharding.recording import InputError
from train.command import MENDABLE
from train.engine import is_lost_rank, on_every_rank, start_distributed

LOST = 3


def main() -> int:
    """Join, try a collective and an object, leave. Returns the exit code."""
    try:
        rank, world = start_distributed()
        on_every_rank(lambda: _add_up(world))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        words = [f"word of rank 0 of {world}" if rank == 0 else None]
        distributed.broadcast_object_list(words, src=0, device=torch.device("cpu"))
        on_every_rank(lambda: _check(words[0] == f"word of rank 0 of {world}", f"was sent {words[0]!r} by rank 0"))
        if rank == 0:
            print(f"{distributed.get_backend()} on {device}")
        distributed.destroy_process_group()
    except InputError as error:
        print(error, file=sys.stderr)
        return MENDABLE
    except RuntimeError as error:
        print(f"rank {os.environ['RANK']}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return LOST if is_lost_rank(error) else 1
    return 0


def _add_up(world: int) -> None:
    one = torch.ones(1, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(one)
    _check(one.item() == world, f"the sum of {world} ones is {one.item():g}")


def _check(is_right: bool, trouble: str) -> None:
    if not is_right:
        raise InputError(f"rank {distributed.get_rank()}: {trouble}")


if __name__ == "__main__":
    sys.exit(main())
