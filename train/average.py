"""A running average of the student's weights: I-JEPA's teacher, or what a run releases."""

import copy

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters

from train.vit import Encoder


class Average:
    """A frozen encoder that follows the student.

    Args:
        student: whose weights it starts with, before an engine shards them.
        device: where it lies.

    Attributes:
        encoder: the average.
        state: its weights and buffers by name, the tensors themselves.

    """

    def __init__(self, student: Encoder, device: torch.device) -> None:
        self.encoder = copy.deepcopy(student).to(device).eval().requires_grad_(requires_grad=False)
        self.state: dict[str, torch.Tensor] = dict(self.encoder.state_dict(keep_vars=True))

    @torch.no_grad()
    def update(self, student: Encoder, decay: float) -> None:
        """Become decay * average + (1 - decay) * student; every rank must call it."""
        weights = list(student.parameters())
        with GatheredParameters(weights):  # ZeRO 3 keeps a part on each rank
            torch._foreach_lerp_(list(self.encoder.parameters()), [w.detach() for w in weights], 1 - decay)
