"""DeepSpeed: one engine around one module, its config derived from ours so that nothing is written twice."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.constants import default_pg_timeout
from torch import distributed, nn

from sharding.order import micro_batches_per_step
from sharding.recording import InputError
from train.config import PretrainConfig
from train.schedule import learning_rate, weight_decay

_NO_DECAY_DIMENSIONS = 1  # biases, norms and tokens' gains are not decayed
_SIDE = {False: 1024, True: 8192}  # of the matrices that are multiplied, on a GPU larger
_TRIES = 5
_SIGN_OF_LIFE = 5.0  # seconds
_LOST = re.compile(
    "closed by peer|reset by peer|broken pipe|timed out|timing out|timeout|remote ?(process exited|error)|was aborted|"
    "connection (was likely )?(refused|closed|aborted)|no route to host|network is unreachable|got 0 bytes",
    re.IGNORECASE,
)
T = TypeVar("T")


def start_distributed() -> tuple[int, int]:
    """Join the process group of deepspeed, torchrun, Slurm or nobody, on a GPU of its own. Returns (rank, world).

    Where there are GPUs, their tensors go over NCCL, and all that lies on the CPU goes over gloo: no word of the ranks
    to each other passes through a GPU.

    Raises:
        InputError: Slurm gives tasks and this is none of them, a rank has no GPU, or the ranks do not find each other.

    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        os.environ.update(_slurm())
    if "RANK" not in os.environ:  # plain `python train/pretrain.py`
        os.environ.update(alone | {"MASTER_PORT": str(_free_port())})
    os.environ.setdefault("LOCAL_RANK", "0")  # Kubeflow's PyTorchJob: one process in each pod
    backend = "gloo"
    if torch.cuda.is_available():
        _take_gpu()
        backend = "cpu:gloo,cuda:nccl"
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except (distributed.DistError, ValueError) as error:  # ValueError: of torch, when MASTER_ADDR or so is not set
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"rank {os.environ['RANK']}: has not met the other ranks at {place} ({_first_line(error)}); that address "
            "must be a host of this run, reached by all of them, with a free port"
        ) from error
    return distributed.get_rank(), distributed.get_world_size()


def _take_gpu() -> None:
    """Make the GPU of this rank the current one, before anything is sent: NCCL sends from the current one."""
    local, num = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= num:
        raise InputError(
            f"rank {os.environ['RANK']}: is number {local} of its host, counted from 0, and sees {num} GPUs; start as "
            "many processes on each host as it has GPUs"
        )
    torch.cuda.set_device(local)


def limit_waiting() -> None:
    """No rank waits for another longer than DEEPSPEED_TIMEOUT minutes (10); call it when all groups are there.

    torch gives the groups that DeepSpeed makes half an hour each, whatever the first one was given.
    """
    for group in list(distributed.distributed_c10d._world.pg_map):  # there is no public way to name them all
        distributed.distributed_c10d._set_pg_timeout(default_pg_timeout, group)


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective operation failed since another rank, or the way to it, is gone.

    torch has one class of errors for that and for tensors on a wrong device, of a wrong size or without memory: only
    the words differ.
    """
    is_collective = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
    return is_collective and _LOST.search(str(error)) is not None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def on_rank_0(act: Callable[[], T]) -> T | None:
    """Do something in the run directory on rank 0, while the others wait; every rank must call it.

    Returns:
        its result on rank 0, None elsewhere.

    Raises:
        InputError: what rank 0 raised, or that it cannot write, on every rank: all end with one exit code, and none
            waits for one that is gone.

    """
    found, trouble = None, ""
    if distributed.get_rank() == 0:
        try:
            found = act()
        except InputError as error:
            trouble = str(error)
        except OSError as error:
            trouble = f"the run directory cannot be written ({error}); make room and run the same command again"
    raise_on_all(trouble)
    return found


def on_every_rank(act: Callable[[], T]) -> T:
    """Do something on each rank; every rank must call it.

    Raises:
        InputError: what one of them raised, on every rank, so that none waits for one that is gone.

    """
    found, mine = [], ""
    try:
        found.append(act())
    except InputError as error:
        mine = str(error)
    troubles = [""] * distributed.get_world_size()
    distributed.all_gather_object(troubles, mine)
    for trouble in filter(None, troubles):
        raise InputError(trouble)
    return found[0]


def wait_for_rank_0(act: Callable[[], object], asked_to_stop: Event) -> bool:
    """Do something on rank 0, however long it takes, while the others wait; every rank must call it.

    Args:
        act: what rank 0 does, in a thread.
        asked_to_stop: ends the waiting when it is set on rank 0.

    Returns:
        whether it was done; False where rank 0 was asked to stop before.

    Raises:
        InputError: what rank 0 raised, on every rank.

    """
    outcome: Future[object] = Future()
    if distributed.get_rank() == 0:
        Thread(target=_put_result, args=(outcome, act), daemon=True).start()  # a daemon: nobody waits for it on a stop
    state = ["at work"]
    while state[0] == "at work":  # a word every few seconds: no rank waits in vain for as long as a lost one costs
        if distributed.get_rank() == 0:
            wait([outcome], timeout=_SIGN_OF_LIFE)
            state = ["done" if outcome.done() else "stopped" if asked_to_stop.is_set() else "at work"]
        distributed.broadcast_object_list(state, src=0, device=torch.device("cpu"))
    if state[0] == "done":
        on_rank_0(outcome.result)
    return state[0] == "done"


def _put_result(outcome: "Future[object]", act: Callable[[], object]) -> None:
    try:
        outcome.set_result(act())
    except Exception as error:
        outcome.set_exception(error)


def raise_on_all(trouble: str) -> None:
    """Say on every rank what is wrong on rank 0; every rank must call it.

    Args:
        trouble: of rank 0, empty where all is well; what the others give is not looked at.

    Raises:
        InputError: there is trouble.

    """
    troubles = [trouble]
    distributed.broadcast_object_list(troubles, src=0, device=torch.device("cpu"))
    if troubles[0]:
        raise InputError(troubles[0])


def _slurm() -> dict[str, str]:
    """What the other launchers set, from what srun sets. The port follows from the job, so that two do not meet.

    A step may have fewer nodes than its job.
    """
    said = os.environ
    if "SLURM_STEP_ID" not in said:  # a batch script looks like the first of the tasks that srun would start
        raise InputError(f"Slurm gives {said['SLURM_NTASKS']} tasks, and this is none of them; start it with srun")
    nodes = said.get("SLURM_STEP_NODELIST", said["SLURM_JOB_NODELIST"])
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    ).stdout.split()
    tasks = said.get("SLURM_STEP_TASKS_PER_NODE") or said.get("SLURM_TASKS_PER_NODE")
    port = 20_000 + (int(said["SLURM_JOB_ID"]) + int(said["SLURM_STEP_ID"])) % 20_000
    return {
        "RANK": said["SLURM_PROCID"],
        # with --gpus-per-task each task sees its own GPU only, and that one is number 0
        "LOCAL_RANK": "0" if torch.cuda.device_count() == 1 else said["SLURM_LOCALID"],
        "WORLD_SIZE": said["SLURM_NTASKS"],
        "MASTER_ADDR": said.get("MASTER_ADDR", hosts[0]),
        "MASTER_PORT": said.get("MASTER_PORT", str(port)),
    } | ({"LOCAL_WORLD_SIZE": str(_tasks_of_nodes(tasks)[int(said["SLURM_NODEID"])])} if tasks else {})


def _tasks_of_nodes(text: str) -> list[int]:
    """Tasks of each node, from what Slurm writes: `2(x3),1` is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deepspeed_config(cfg: PretrainConfig, world: int) -> dict[str, Any]:
    """The config that DeepSpeed reads, from ours and the number of processes."""
    accumulation = micro_batches_per_step(cfg.optim.batch, cfg.run.micro_batch, world)
    return {
        "train_micro_batch_size_per_gpu": cfg.run.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": cfg.optim.clip,
        # below stage 2 all gradients stay; copying them into one buffer cost a third of a small model's step on a CPU
        "zero_optimization": {"stage": cfg.run.zero_stage, "contiguous_gradients": cfg.run.zero_stage > 1},
        # fp32 masters; DeepSpeed's own bf16 optimizer leaked gradients between steps until 0.19.1
        "torch_autocast": {"enabled": cfg.optim.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
    }


def build_engine(module: nn.Module, cfg: PretrainConfig, world: int) -> Any:  # noqa: ANN401 - DeepSpeed has no types
    """Wrap the module; AdamW with weight decay on matrices only."""
    matrices = [p for p in module.parameters() if p.ndim > _NO_DECAY_DIMENSIONS]
    others = [p for p in module.parameters() if p.ndim <= _NO_DECAY_DIMENSIONS]
    groups = [{"params": matrices, "decayed": True}, {"params": others, "decayed": False, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cfg.optim.lr, betas=cfg.optim.betas, fused=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_config(cfg, world))
    limit_waiting()
    if cfg.run.compile:
        engine.compile(compile_kwargs={"dynamic": False})
    return engine


def gradient_norm(engine: Any) -> float | None:  # noqa: ANN401
    """Of the last step before clipping, over all ranks; waits for the device. None: ZeRO-0 does not keep it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s that a device reaches in one large matrix product: what a step is measured against."""
    side = _SIDE[device.type == "cuda"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def set_schedule(engine: Any, step: int, cfg: PretrainConfig) -> None:  # noqa: ANN401
    """Set learning rate and weight decay of an optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(step, cfg.optim)
        group["weight_decay"] = weight_decay(step, cfg.optim) if group["decayed"] else 0.0


def set_still(engine: Any) -> None:  # noqa: ANN401
    """Make the next step change no weight."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
