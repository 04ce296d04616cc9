"""Trying a config: its costs at full size, and two steps at reduced size on generated data, in a minute on a CPU."""

from pathlib import Path
from typing import Any

import torch

from sharding.job import on_processes, run
from sharding.plan import make_plan
from sharding.policy import Job, Policy
from sharding.recording import FrameChoice
from sharding.sources.synthetic_files import write_demo_set
from train.config import MaskConfig, PretrainConfig, TeacherConfig
from train.flops import costs_of, describe_costs
from train.objective import shape_of
from train.teacher import random_teacher

_GRID = 6  # patches a side
_BATCH, _STEPS, _DEPTH, _PATIENTS = 8, 2, 2, 8


def describe_config(cfg: PretrainConfig) -> str:
    """Weights and operations of a config at its own size; a teacher that is a folder counts as the student's kind."""
    shape = shape_of(cfg)
    teacher, width = None, shape.width
    if cfg.teacher is not None:
        teacher = random_teacher(teacher_arch(cfg), shape.grid)
        width = teacher.width
    if cfg.objective == "pixel":
        width = shape.patch**2
    return describe_costs(costs_of(cfg, width, teacher))


def smoke_config(cfg: PretrainConfig, folder: Path) -> PretrainConfig:
    """The same config on a 6 x 6 grid with two blocks, a random teacher, and generated data in a folder."""
    patch = shape_of(cfg).patch
    content: dict[str, Any] = cfg.model_dump()
    content["data"] |= {"shards": [str(_shards(folder))], "canvas": patch * _GRID, "weights": (), "val_samples": _BATCH}
    content["augment"] |= {name: (content["augment"][name][0],) for name in ("horizontal_flip", "vertical_flip")}
    content["masks"] = _reduced(cfg.masks, shape_of(cfg).grid).model_dump()
    content["student"] |= {"image_size": patch * _GRID, "args": cfg.student.args | {"depth": _DEPTH}}
    content["predictor"] |= {"depth": _DEPTH}
    if cfg.teacher is not None:
        precision = "fp32" if cfg.teacher.precision in ("int8", "fp8") else cfg.teacher.precision
        content["teacher"] = TeacherConfig(source=f"random:{teacher_arch(cfg)}", precision=precision).model_dump()
    content["target"] |= {"measure_batches": 1}
    content["optim"] |= {"batch": _BATCH, "steps": _STEPS, "warmup_steps": 0}
    content["run"] |= {
        "dir": folder / "run", "micro_batch": _BATCH, "num_workers": 0, "log_every": 1, "compile": False,
        "copy_to": None, "probe": None, "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
    }  # fmt: skip
    return PretrainConfig.model_validate(content)


def teacher_arch(cfg: PretrainConfig) -> str:
    """Timm name of the teacher; one that is a folder counts as the student's kind."""
    assert cfg.teacher is not None
    source = cfg.teacher.source.removeprefix("random:")
    return cfg.student.arch if "/" in source or Path(source).exists() else source


def _reduced(masks: MaskConfig, grid: int) -> MaskConfig:
    share = _GRID**2 / grid**2

    def smaller(number: int) -> int:
        return max(1, int(number * share))

    changes = {name: smaller(getattr(masks, name)) for name in ("context_tokens", "target_tokens", "min_patches")}
    return masks.model_copy(update=changes | {"more": tuple(_reduced(one, grid) for one in masks.more)})


def _shards(folder: Path) -> Path:
    torch.manual_seed(0)
    write_demo_set(folder / "source", _PATIENTS, seed=0)
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(b"a key of generated data, no secret")
    policy = Policy("smoke", FrameChoice(max_frames=4), val_share=0.2)
    job = Job(str(folder / "source"), str(folder / "shards"), policy, folder / "key")
    list(run(job, make_plan(job), on_processes(1)))
    return folder / "shards"
