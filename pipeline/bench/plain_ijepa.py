"""I-JEPA as its paper describes it (arXiv 2301.08243), in plain PyTorch: what `make bench-step` is measured against.

Eager; masks on the CPU with one block size per batch and truncation to the batch's shortest; every target block in a
predictor pass of its own, with the context repeated; a teacher of the student's size that is its running average.
Attention is torch's fused one, as any user would write it today. Nothing here is imported from `train`.
Dimensions: B images, N patches, K context tokens, T targets of L tokens, D width.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

_PATCH = 16  # pixels
_MLP_RATIO = 4


@dataclass(frozen=True)
class Shape:
    """Width, depth and heads of the encoder, then of the predictor; patches per side."""

    encoder: tuple[int, int, int]
    predictor: tuple[int, int, int]
    grid: int = 14


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_RATIO * width), nn.GELU(), nn.Linear(_MLP_RATIO * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) to (B, N, D)."""
        num, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(num, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(num, length, width))
        done: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return done


class Encoder(nn.Module):
    """Grey images to tokens of all patches, or of those shown."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, depth, num_heads = shape.encoder
        self.patchify = nn.Conv2d(1, width, _PATCH, _PATCH)
        self.positions = nn.Parameter(torch.randn(1, shape.grid**2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Images (B, 1, S, S), ids (B, K) or None, to (B, K or N, D)."""
        tokens = self.patchify(images).flatten(2).transpose(1, 2) + self.positions
        normed: torch.Tensor = self.norm(self.blocks(tokens if ids is None else gathered(tokens, ids)))
        return normed


class Predictor(nn.Module):
    """Context and mask tokens to latents, one pass for each target block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, depth, num_heads = shape.predictor
        self.embed = nn.Linear(shape.encoder[0], width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.randn(1, shape.grid**2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, shape.encoder[0])

    def forward(self, context: torch.Tensor, context_ids: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
        """Context (B, K, D), context_ids (B, K), T targets (B, L), to (T B, L, D)."""
        positions = self.get_buffer("positions").expand(len(context), -1, -1)
        shown = (self.embed(context) + gathered(positions, context_ids)).repeat(len(targets), 1, 1)
        asked = self.mask_token + torch.cat([gathered(positions, ids) for ids in targets])
        tokens = self.blocks(torch.cat([shown, asked], dim=1))
        predicted: torch.Tensor = self.project(self.norm(tokens[:, shown.shape[1] :]))
        return predicted


def gathered(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(B, N, D) and (B, K) to (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


class PlainIjepa(nn.Module):
    """Student, predictor and their running average; `step` is one optimizer step on a batch.

    Args:
        shape: of the networks.
        momentum: of the running average; I-JEPA's schedule changes its value, not its cost.

    """

    def __init__(self, shape: Shape, momentum: float = 0.996) -> None:
        super().__init__()
        self.student, self.predictor, self.momentum = Encoder(shape), Predictor(shape), momentum
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)
        trained = [*self.student.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, images: torch.Tensor, masks: tuple[torch.Tensor, list[torch.Tensor]]) -> torch.Tensor:
        """One optimizer step on images (B, 1, S, S) under (context ids, target ids per block); the loss, ()."""
        context_ids, targets = masks
        with torch.no_grad():
            latents = functional.layer_norm(whole := self.teacher(images), whole.shape[-1:])
            wanted = torch.cat([gathered(latents, ids) for ids in targets])
        predicted = self.predictor(self.student(images, context_ids), context_ids, targets)
        loss = functional.smooth_l1_loss(predicted, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                average.mul_(self.momentum).add_(value.detach(), alpha=1 - self.momentum)
        return loss.detach()


class Collator:
    """I-JEPA's block masks of a batch, drawn on the CPU: one target and one context size per batch, places per image.

    As published, also in what it gets wrong: no block starts at the last place or is as tall as the grid, so the last
    row and column are never used, and one draw gives both area and aspect.

    Args:
        grid: patches per side.
        target_scale: share of the grid's area; I-JEPA's is (0.15, 0.2).
        seed: of everything drawn.

    """

    _CONTEXT_SCALE, _ASPECT, _NUM_TARGETS, _MIN_PATCHES = (0.85, 1.0), (0.75, 1.5), 4, 10

    def __init__(self, grid: int, target_scale: tuple[float, float], seed: int = 0) -> None:
        self.grid, self.target_scale = grid, target_scale
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, num_images: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Context ids (B, K) and T times target ids (B, L); K and L are the shortest of the batch."""
        target_size = self._size(self.target_scale, self._ASPECT)
        context_size = self._size(self._CONTEXT_SCALE, (1.0, 1.0))
        contexts, targets = [], []
        for _ in range(num_images):
            blocks = [self._block(target_size, []) for _ in range(self._NUM_TARGETS)]
            targets.append([ids for ids, _ in blocks])
            contexts.append(self._block(context_size, [outside for _, outside in blocks])[0])
        return _cut(contexts), [_cut(list(ids)) for ids in zip(*targets, strict=True)]

    def _block(self, size: tuple[int, int], allowed: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of a block within what is allowed, drawn again until enough are left, and a map of what is outside."""
        height, width = size
        while True:
            top = int(torch.randint(0, self.grid - height, (1,), generator=self.generator))
            left = int(torch.randint(0, self.grid - width, (1,), generator=self.generator))
            block = torch.zeros((self.grid, self.grid), dtype=torch.int32)
            block[top : top + height, left : left + width] = 1
            for outside in allowed:
                block *= outside
            ids = block.flatten().nonzero().squeeze(1)
            if len(ids) > self._MIN_PATCHES:
                break
        outside = torch.ones((self.grid, self.grid), dtype=torch.int32)
        outside[top : top + height, left : left + width] = 0
        return ids, outside

    def _size(self, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        """Height and width in patches."""
        draw = float(torch.rand(1, generator=self.generator))
        area = self.grid**2 * (scale[0] + draw * (scale[1] - scale[0]))
        ratio = aspect[0] + draw * (aspect[1] - aspect[0])
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, self.grid - 1), min(width, self.grid - 1)


def _cut(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows of ids cut to the shortest, first ids kept."""
    shortest = min(len(row) for row in rows)
    return torch.stack([row[:shortest] for row in rows])
