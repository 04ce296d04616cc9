"""Learning rate and weight decay as pure functions of the step, so that a resumed run replays nothing."""

import math

from train.config import OptimConfig


def learning_rate(step: int, cfg: OptimConfig) -> float:
    """Linear warm-up from start_lr to lr, then a cosine to final_lr at the last step."""
    if step < cfg.warmup_steps:
        return cfg.start_lr + (cfg.lr - cfg.start_lr) * step / cfg.warmup_steps
    return cfg.final_lr + (cfg.lr - cfg.final_lr) * _cosine(step - cfg.warmup_steps, cfg.steps - cfg.warmup_steps)


def weight_decay(step: int, cfg: OptimConfig) -> float:
    """Cosine from the first to the second value over the whole run."""
    low, high = cfg.weight_decay
    return high + (low - high) * _cosine(step, cfg.steps)


def _cosine(step: int, steps: int) -> float:
    """1 at step 0, 0 at the last step."""
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(steps - 1, 1))) if step < steps - 1 else 0.0


def due(step: int, every: int, steps: int) -> bool:
    """True on every `every`-th step and on the last one."""
    return (step + 1) % every == 0 or step + 1 == steps
