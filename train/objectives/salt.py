"""SALT stage 2: predict the frozen teacher's latents of the whole image (arXiv 2509.24317, 2602.19322)."""

from functools import partial

import torch

from train.config import PretrainConfig
from train.latents import Latents
from train.masks import draw_all
from train.model import LatentPredictor
from train.objective import Objective
from train.teacher import Teacher


def salt(cfg: PretrainConfig, teacher: Teacher, teacher_sha256: str, device: torch.device) -> Objective:
    """The student sees the context, the predictor says the teacher's latents of the hidden blocks."""
    latents = Latents(teacher, cfg.target, device)
    return Objective(
        module=LatentPredictor(cfg, teacher.width),
        width=teacher.width,
        targets=latents,
        masks=partial(draw_all, cfg=cfg.masks, seed=cfg.data.seed),
        is_frozen=True,
        state=latents.state,
        measure=latents.measure,
        teacher=teacher,
        teacher_sha256=teacher_sha256,
    )
