"""One portable checkpoint file: full fp32 weights and moments per parameter, for any world size and ZeRO stage.

DeepSpeed's own checkpoints load only at the world size that wrote them. `checkpoints/step-00000020.safetensors` has
20 optimizer steps in it; order, masks and schedules are functions of the step, so nothing else is saved.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from safetensors.torch import load_file, save_file
from torch import distributed

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from.

    Attributes:
        step: optimizer steps done.
        tensors: `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, and the extra tensors that were saved.

    """

    step: int
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors under a prefix, by the rest of their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, None when there is none yet."""
    paths = sorted((run_dir / "checkpoints").glob("step-*.safetensors"))
    if not paths:
        return None
    return Checkpoint(int(paths[-1].stem.removeprefix("step-")), load_file(paths[-1]))


def save_checkpoint(engine: Any, step: int, extra: dict[str, torch.Tensor], run_dir: Path, keep: int) -> None:  # noqa: ANN401
    """Write a checkpoint after `step` optimizer steps; every rank must call it.

    Raises:
        FloatingPointError: a weight is not finite; the last good checkpoint stays.

    """
    _link_moments(engine)
    tensors = dict(extra)
    for name, param in engine.module.named_parameters():  # collective: all ranks gather, rank 0 writes
        tensors[f"weights.{name}"] = _full_weight(param)
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = _full_moment(engine, param, moment)
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise FloatingPointError(f"checkpoint of step {step}: {bad[0]} is not finite; the one before it is kept")
    if distributed.get_rank() == 0:
        directory = run_dir / "checkpoints"
        directory.mkdir(exist_ok=True)
        _write(tensors, directory / f"step-{step:08d}.safetensors")
        for old in sorted(directory.glob("step-*.safetensors"))[:-keep]:
            old.unlink()
    distributed.barrier()


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def restore_moments(engine: Any, checkpoint: Checkpoint) -> None:  # noqa: ANN401
    """Set the optimizer's moments and step; its state must exist, so run one still step before."""
    _link_moments(engine)
    for moment in _MOMENTS:
        values = checkpoint.part(moment)
        for name, param in engine.module.named_parameters():
            value = values[name].to(engine.device)
            if _is_sharded(param):
                safe_set_full_optimizer_state(param, value, moment)
            else:
                engine.optimizer.state[param][moment].copy_(value)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        state["step"].fill_(checkpoint.step)


def _link_moments(engine: Any) -> None:  # noqa: ANN401
    """Tie parameters to their optimizer state under ZeRO 1 and 2.

    DeepSpeed 0.19.8 does so once, after the step of the first parameter group, when the other groups have no state
    yet; their moments could then be neither read nor set.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_sharded(param: torch.nn.Parameter) -> bool:
    return hasattr(param, "_hp_mapping") or hasattr(param, "ds_id")


def _full_weight(param: torch.nn.Parameter) -> torch.Tensor:
    weight: torch.Tensor = safe_get_full_fp32_param(param) if _is_sharded(param) else param.detach().float()
    return weight


def _full_moment(engine: Any, param: torch.nn.Parameter, moment: str) -> torch.Tensor:  # noqa: ANN401
    state: torch.Tensor = (
        safe_get_full_optimizer_state(param, moment) if _is_sharded(param) else engine.optimizer.state[param][moment]
    )
    return state
