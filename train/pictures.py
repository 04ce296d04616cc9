"""Pictures of a run: masks over frames, and what the student's patches have in common.

Dimensions: B images, S pixels a side, N patches, F channels of the tokens.
"""

import cv2
import numpy as np
import torch

from sharding.report import grid_png
from train.step import View

_NUM_IMAGES = 8
_TARGET_BGR = (60, 140, 255)
_TILE = 224  # pixels a side at least


def masks_png(view: View, patch: int) -> bytes:
    """Frames of a view with its first mask: bright context, outlined targets, dark what is hidden or outside."""
    mask = view.masks[0]
    tiles = []
    rows = zip(view.images, mask.context_ids, mask.target_ids, mask.target_weight, strict=True)
    for image, context, targets, weight in list(rows)[:_NUM_IMAGES]:
        grey = _grey(image)
        seen = np.full(grey.shape, 0.25, np.float32)  # what the student does not see is dark
        for patch_id in context.tolist():
            seen[_box(patch_id, grey.shape[0], patch)] = 1
        tile = cv2.cvtColor((grey * seen).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        for patch_id in targets[weight > 0].tolist():
            _outline(tile, grey, _box(patch_id, grey.shape[0], patch))
        tiles.append(_enlarged(tile))
    return grid_png(tiles, _NUM_IMAGES // 2)


def features_png(view: View, tokens: torch.Tensor) -> bytes:
    """Frames above their patches' first three principal components as colours; tokens (B, N, F) of the view."""
    valid = view.valid[:_NUM_IMAGES]
    some = tokens[:_NUM_IMAGES].float()
    centred = torch.where(valid[..., None], some - some[valid].mean(dim=0), 0)  # what is outside adds no direction
    parts = centred @ torch.linalg.svd(centred.flatten(0, 1), full_matrices=False).Vh[:3].T
    deviation = parts[valid].std(dim=0, correction=0).nan_to_num().clamp(min=torch.finfo(parts.dtype).tiny)
    colours = (0.5 + parts / (4 * deviation)).clamp(0, 1) * valid[..., None]
    side = round(tokens.shape[1] ** 0.5)
    levels = (colours * 255).byte().unflatten(1, (side, side)).cpu().numpy()
    frames = [_enlarged(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2BGR)) for image in view.images[:_NUM_IMAGES]]
    maps = [
        cv2.resize(one, frame.shape[:2], interpolation=cv2.INTER_NEAREST)
        for one, frame in zip(levels, frames, strict=True)
    ]
    return grid_png(frames + maps, len(frames))


def _grey(image: torch.Tensor) -> np.ndarray:
    return (image[0].float().cpu().numpy() * 255).astype(np.uint8)


def _enlarged(tile: np.ndarray) -> np.ndarray:
    factor = max(1, -(-_TILE // tile.shape[0]))
    return cv2.resize(tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)


def _box(patch_id: int, side: int, patch: int) -> tuple[slice, slice]:
    row, column = divmod(patch_id, side // patch)
    return slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)


def _outline(tile: np.ndarray, grey: np.ndarray, box: tuple[slice, slice]) -> None:
    tile[box] = grey[box][..., None]
    inner = tile[box]
    for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
        inner[edge] = _TARGET_BGR
