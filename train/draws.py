"""Random numbers that depend on (seed, sample position, purpose) only: the same on any device, rank or micro batch."""

import torch

_INCREMENT = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64


def uniforms(seed: int, purpose: int, positions: torch.Tensor, num: int) -> torch.Tensor:
    """Independent uniform draws in [0, 1) with 24 bits.

    Counter-based (SplitMix64), so nothing is advanced and nothing has to be saved or replayed.

    Args:
        seed: of the run.
        purpose: a number per use, so that crops and masks do not share draws.
        positions: (B,) int64 global sample positions.
        num: draws per position.

    Returns:
        (B, num) float32.

    """
    return ((_hashes(seed, purpose, positions, num) >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def shorts(seed: int, purpose: int, positions: torch.Tensor, num: int) -> torch.Tensor:
    """Independent draws of 16 bits, (B, num) int16, at a quarter of the cost: for places and orders of some patches."""
    return _hashes(seed, purpose, positions, -(-num // 4)).view(torch.int16)[:, :num]


def _hashes(seed: int, purpose: int, positions: torch.Tensor, num: int) -> torch.Tensor:
    """(B, num) int64, every bit of which is random."""
    start = (seed * 0x100000001B3 + purpose) % 2**63
    keys = _mix(_mix(positions + start) + start)
    counters = torch.arange(1, num + 1, device=positions.device) * _INCREMENT
    return _mix(keys[:, None] + counters)


def _mix(values: torch.Tensor) -> torch.Tensor:
    # int64 products wrap like uint64 ones; >> is arithmetic, hence the masks
    values = (values ^ ((values >> 30) & (2**34 - 1))) * -4658895280553007687
    values = (values ^ ((values >> 27) & (2**37 - 1))) * -7723592293110705685
    return values ^ ((values >> 31) & (2**33 - 1))
