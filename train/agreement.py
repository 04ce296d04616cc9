"""What all ranks must have in common before the first step: ranks that differ would train nonsense, or wait."""

import hashlib
import json
import socket
from typing import Any

from torch import distributed

from sharding.recording import InputError
from sharding.shard_set import ShardSet
from train.checkpoint import Checkpoint, latest_checkpoint
from train.config import PretrainConfig
from train.engine import on_every_rank

_OF_A_HOST: Any = {  # paths may differ where a folder is mounted under two names; what they hold is compared by content
    "run": {"dir", "copy_to", "probe", "tracking_uri"},
    "data": {"shards"},
    "teacher": {"source", "weights"},
}


def agreed_checkpoint(cfg: PretrainConfig, sets: list[ShardSet]) -> Checkpoint | None:
    """The newest checkpoint of a run, None when there is none yet; every rank must call it.

    Raises:
        InputError: the file is damaged, or ranks have different configs, data or checkpoints; names two of them.

    """
    settings = json.dumps(cfg.model_dump(mode="json", exclude=_OF_A_HOST), sort_keys=True)
    check_same("config: sha256", hashlib.sha256(settings.encode()).hexdigest()[:12], "give all hosts the same config")
    data = ",".join(found.sha256[:12] for found in sets)
    check_same("data.shards: sha256", data, "give all hosts the same data")
    checkpoint = on_every_rank(lambda: latest_checkpoint(cfg.run.dir))
    check_same(
        f"run {cfg.run.dir}: the newest checkpoint",
        "none" if checkpoint is None else f"of step {checkpoint.step}",
        "run.dir must be one folder that all hosts share",
    )
    return checkpoint


def check_same(what: str, value: str, advice: str) -> None:
    """Compare a value with that of the other ranks; every rank must call it.

    Args:
        what: the value's name.
        value: of this rank.
        advice: how to make it the same.

    Raises:
        InputError: on every rank, when two differ; names value, rank and host of both.

    """
    seen: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(seen, (value, socket.gethostname()))
    first, host = seen[0]
    for rank, (other, other_host) in enumerate(seen):
        if other != first:
            raise InputError(
                f"{what} is {first} on rank 0 ({host}), and {other} on rank {rank} ({other_host}); {advice}"
            )
