"""The frozen teacher: built, loaded whole, in eval mode, without gradients, outside engine and checkpoints."""

import hashlib
from pathlib import Path

from sharding.recording import InputError
from train.config import TeacherConfig
from train.vit import Encoder, load_encoder, load_timm_encoder


def load_teacher(cfg: TeacherConfig, grid: int) -> tuple[Encoder, str]:
    """Load the teacher that a config names.

    Args:
        cfg: source and, for a timm name, weights.
        grid: patches per side of the student; the teacher gets the image size at which its own grid is the same.

    Returns:
        the teacher and the sha256 of its weights.

    Raises:
        InputError: the source is neither a folder with an encoder nor a timm name, or its weights don't fit.

    """
    source = Path(cfg.source)
    if source.is_dir():
        inner = source / "encoder"
        teacher = load_encoder(inner if inner.is_dir() else source)
        if teacher.grid != grid:
            raise InputError(
                f"teacher {source}: its grid is {teacher.grid} x {teacher.grid} patches, the student's "
                f"{grid} x {grid}; set student.image_size to fit"
            )
    else:
        teacher = load_timm_encoder(cfg.source, grid, cfg.weights)
    teacher.eval().requires_grad_(requires_grad=False)
    return teacher, weights_hash(teacher)


def weights_hash(encoder: Encoder) -> str:
    """sha256 over names and values of all weights: the teacher's identity in a run's record."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
