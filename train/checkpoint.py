"""One portable checkpoint file: full fp32 weights and moments per parameter, for any world size and ZeRO stage.

DeepSpeed's own checkpoints load only at the world size that wrote them. `checkpoints/step-00000020.safetensors` has
20 optimizer steps in it; order, masks and schedules are functions of the step, so nothing else is saved.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from torch import distributed

from train.copies import Copies
from train.engine import on_rank_0
from train.tensor_file import read_header, read_tensors, remove_unfinished, write_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from.

    Attributes:
        step: optimizer steps done.
        tensors: `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, and the extra tensors that were saved.
        facts: of the file's header, see CheckpointStore.

    """

    step: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, str]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors under a prefix, by the rest of their names."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, None when there is none yet.

    Raises:
        InputError: its file is damaged. An older one is never taken in silence.

    """
    paths = _paths(run_dir)
    return _read(paths[-1], paths[:-1]) if paths else None


class CheckpointStore:
    """The checkpoints of one run: the last ones and the best one. Every rank has one; rank 0 writes.

    A file's header holds its score, so the best is known from the files alone: it is the one that is not removed.
    No moment exists at which a crash could lose it.

    Args:
        run_dir: run directory.
        keep: number of last checkpoints that stay.
        copy_to: folder or URL; see train/copies.py. None: no copies.
        facts: what the header of each file says beside its score.

    Raises:
        InputError: a checkpoint is damaged, or `copy_to` is no place that can be written to.

    """

    def __init__(
        self, run_dir: Path, keep: int, copy_to: str | None = None, facts: dict[str, str] | None = None
    ) -> None:
        self._run_dir, self._keep, self._folder, self._facts = run_dir, keep, run_dir / "checkpoints", facts or {}
        self._is_writer = distributed.get_rank() == 0
        self._copies = on_rank_0(partial(self._open, copy_to))

    def _open(self, copy_to: str | None) -> Copies | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self._folder)
        _best(_paths(self._run_dir))  # a damaged one is said now, not in the middle of the run
        if copy_to is None:
            return None
        return Copies(self._folder, f"{copy_to.rstrip('/')}/{self._run_dir.resolve().name}")

    def save(self, engine: Any, step: int, extra: dict[str, torch.Tensor], score: float | None = None) -> None:  # noqa: ANN401
        """Write a checkpoint after `step` optimizer steps; every rank must call it.

        Args:
            engine: of DeepSpeed, any ZeRO stage.
            step: optimizer steps done.
            extra: further tensors by name, the same on every rank.
            score: held-out loss, lower is better; None: this one cannot be the best.

        Raises:
            FloatingPointError: a value is not finite; the last good checkpoint stays.
            InputError: the disk is full or fails; the last good checkpoint stays.

        """
        tensors, bad = _gather(engine, extra, self._is_writer)
        if score is not None and not math.isfinite(score):
            bad.append(f"the score, {score},")
        if bad:
            raise FloatingPointError(f"checkpoint of step {step}: {bad[0]} is not finite; the one before it is kept")
        header = self._facts if score is None else self._facts | {"score": repr(score)}
        on_rank_0(partial(self._write, tensors, step, header))

    def _write(self, tensors: dict[str, torch.Tensor], step: int, header: dict[str, str]) -> None:
        write_tensors(tensors, self._folder / f"step-{step:08d}.safetensors", header)
        self._prune()
        if self._copies is not None:
            self._copies.refresh()

    def latest(self) -> Checkpoint | None:
        """Like `latest_checkpoint`."""
        return latest_checkpoint(self._run_dir)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the lowest score, None when none has one.

        Raises:
            InputError: its file is damaged.

        """
        path = _best(_paths(self._run_dir))
        return None if path is None else _read(path, [])

    def close(self) -> None:
        """Wait for the copies.

        Raises:
            InputError: `copy_to` lacks a checkpoint; the next start of the run copies it.

        """
        if self._copies is not None:
            self._copies.close()

    def leave(self) -> None:
        """End without waiting for the copies."""
        if self._copies is not None:
            self._copies.leave()

    def _prune(self) -> None:
        paths = _paths(self._run_dir)
        best = _best(paths)
        for path in paths[: -self._keep]:
            if path != best:
                path.unlink()


def _paths(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step-*.safetensors"))


def _best(paths: list[Path]) -> Path | None:
    scores = {path: float(header["score"]) for path in paths if "score" in (header := read_header(path))}
    return min(scores, key=lambda path: (scores[path], path), default=None)


def _read(path: Path, older: list[Path]) -> Checkpoint:
    way_out = f"delete it to go on from {older[-1].name}" if older else "delete it to go on without it"
    return Checkpoint(int(path.stem.removeprefix("step-")), read_tensors(path, way_out), read_header(path))


def _gather(engine: Any, extra: dict[str, torch.Tensor], is_writer: bool) -> tuple[dict[str, torch.Tensor], list[str]]:  # noqa: ANN401
    """All tensors on the CPU of the writer, and the names of those with values that are not finite.

    Collective: all ranks must ask for the same tensors in the same order.
    """
    _link_moments(engine)
    tensors: dict[str, torch.Tensor] = {}
    bad: list[str] = []
    for name, value in _full_tensors(engine, extra):
        if not value.isfinite().all():
            bad.append(name)
        if is_writer:
            tensors[name] = value.detach().cpu().contiguous()
    return tensors, bad


def _full_tensors(engine: Any, extra: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ANN401
    yield from extra.items()
    for name, param in engine.module.named_parameters():
        yield f"weights.{name}", _full_weight(param)
        for moment in _MOMENTS:
            yield f"{moment}.{name}", _full_moment(engine, param, moment)


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
